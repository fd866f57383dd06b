package org.maestroedge.classifier

import kotlin.math.pow

/** What a choice describes: null and 0 where it cannot be read. */
data class Device(val soc: String?, val memoryGib: Double)

/** The share of a budget that a more accurate variant may take: with all of it an app would swing between two. */
private const val ROOM = 0.9

private val bestFirst = compareByDescending<Variant> { it.accuracy }.thenBy { it.p50Ms }

/** The variants whose runtime is here and which ran on the device that the bundle was made for. */
fun usable(variants: List<Variant>, runtimes: Set<String>): List<Variant> =
    variants.filter { it.runtime in runtimes && it.measuredMs != null }

/** The variant to start with, by the rules of apps/README.md; null when none is left. */
fun choose(
    variants: List<Variant>,
    choices: List<Choice>,
    device: Device,
    runtimes: Set<String>,
    budgetMs: Double?,
): Variant? {
    val here = usable(variants, runtimes)
    if (budgetMs != null) return best(here.filter { it.p50Ms <= budgetMs })
    return choices.filter { it.fits(device) }.firstNotNullOfOrNull { it.among(here) } ?: best(here)
}

/** The variant to go on with after runs of `liveMs` (median), by the rules of apps/README.md. */
fun adapt(
    variants: List<Variant>,
    current: Variant,
    liveMs: Double,
    budgetMs: Double?,
    isHot: Boolean,
    runtimes: Set<String>,
): Variant {
    val here = usable(variants, runtimes)
    val limitMs = budgetMs ?: Double.POSITIVE_INFINITY
    fun expectedMs(variant: Variant) = variant.p50Ms / current.p50Ms * liveMs
    if (isHot || liveMs > limitMs) {
        val within = here.filter { expectedMs(it) <= limitMs && !(isHot && expectedMs(it) >= liveMs) }
        return best(within) ?: here.minByOrNull(::expectedMs) ?: current
    }
    if (budgetMs == null) return current
    return best(here.filter { it.accuracy > current.accuracy && expectedMs(it) <= ROOM * budgetMs }) ?: current
}

/** For a slider: budgets from the fastest variant's time to a quarter above the slowest's, then none. */
fun budgetSteps(variants: List<Variant>, runtimes: Set<String>, count: Int = 20): List<Double?> {
    val times = usable(variants, runtimes).map { it.p50Ms }
    val fastest = times.minOrNull() ?: return listOf(null)
    val ratio = 1.25 * times.max() / fastest
    return List(count) { fastest * ratio.pow(it / (count - 1.0)) } + null
}

/** Of equal accuracy the lowest p50, of equal ones the first listed. */
private fun best(variants: List<Variant>) = variants.minWithOrNull(bestFirst)

private fun Choice.fits(device: Device) =
    (soc == null || soc == device.soc) && (memoryGib ?: 0.0) <= device.memoryGib

private fun Choice.among(variants: List<Variant>) =
    variants.firstOrNull { it.name == variant && (runtime == null || runtime == it.runtime) }
