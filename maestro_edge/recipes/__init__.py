"""Recipes: data sets, models, and the whole main job on a run folder."""
