package org.maestroedge.classifier

import kotlin.math.exp

/** A label and its probability. */
data class Guess(val label: String, val probability: Double)

/** The quantile by linear interpolation between the two nearest samples, as numpy's default. */
fun quantile(samples: Collection<Double>, share: Double): Double {
    require(samples.isNotEmpty() && share in 0.0..1.0) { "no quantile $share of ${samples.size} samples" }
    val sorted = samples.sorted()
    val place = share * (sorted.size - 1)
    val below = sorted[place.toInt()]
    val above = sorted[minOf(place.toInt() + 1, sorted.size - 1)]
    return below + (above - below) * (place - place.toInt())
}

/** The `count` likeliest labels by the softmax of the logits; of equal ones the first. */
fun likeliest(logits: FloatArray, labels: List<String>, count: Int = 5): List<Guess> {
    val largest = logits.max().toDouble()
    val odds = logits.map { exp(it - largest) }
    val sum = odds.sum()
    return labels.indices.sortedByDescending { logits[it] }.take(count).map { Guess(labels[it], odds[it] / sum) }
}
