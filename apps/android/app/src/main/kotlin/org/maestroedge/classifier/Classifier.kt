package org.maestroedge.classifier

import java.io.File
import java.util.Locale

/** A loaded file: the prepared image in, the logits out. */
interface Session : AutoCloseable {
    fun run(image: FloatArray): FloatArray
}

/** Loads a variant's checked file; throws ClassifierError where its runtime cannot. */
fun interface Loader {
    fun load(file: File, variant: Variant, input: InputSpec): Session
}

/** Of the last runs of the variant, in milliseconds. */
class Outcome(val variant: Variant, val guesses: List<Guess>, val p50Ms: Double, val p90Ms: Double, val runs: Int)

/**
 * Runs the bundle's variant that the budget allows, and changes it when the times or the heat say so.
 *
 * Not safe for threads: one owns it.
 *
 * @throws ClassifierError no variant runs here.
 */
class Classifier(
    private val bundle: Bundle,
    private val device: Device,
    private val runtimes: Set<String>,
    private val loader: Loader,
    private val clockNs: () -> Long = System::nanoTime,
) : AutoCloseable {
    private val manifest = bundle.manifest
    private var session: Session? = null
    private val samplesMs = ArrayDeque<Double>()
    private var runsSinceChange = 0
    private var budgetMs: Double? = null

    /** What a slider may offer. */
    val budgetSteps: List<Double?> get() = budgetSteps(manifest.variants, runtimes)

    var variant: Variant = pick(null)
        private set

    /**
     * Starts anew with what this budget allows; null allows all.
     *
     * @throws ClassifierError it allows nothing, and the old budget stays; or the variant cannot be loaded.
     */
    fun allow(budgetMs: Double?) {
        val chosen = pick(budgetMs)
        this.budgetMs = budgetMs
        change(chosen)
    }

    /**
     * Runs the variant on an image, so many times.
     *
     * @throws ClassifierError its file is not the manifest's, or its runtime cannot run it.
     */
    fun classify(image: Image, runs: Int = 1): Outcome {
        require(runs > 0) { "$runs runs" }
        val fed = prepare(image, manifest.input)
        val running = session ?: load(fed)
        lateinit var logits: FloatArray
        repeat(runs) {
            val start = clockNs()
            logits = running.run(fed)
            samplesMs.addLast((clockNs() - start) / 1e6)
            if (samplesMs.size > WINDOW_RUNS) samplesMs.removeFirst()
            runsSinceChange++
        }
        check(logits)
        val (p50, p90) = listOf(0.5, 0.9).map { quantile(samplesMs, it) }
        return Outcome(variant, likeliest(logits, manifest.labels), p50, p90, samplesMs.size)
    }

    /** Whether it changed the variant: after each [WINDOW_RUNS] runs of one it may. */
    fun reconsider(isHot: Boolean): Boolean {
        if (runsSinceChange == 0 || runsSinceChange % WINDOW_RUNS != 0) return false
        val liveMs = quantile(samplesMs, 0.5)
        val next = adapt(manifest.variants, variant, liveMs, budgetMs, isHot, runtimes)
        return (next != variant).also { if (it) change(next) }
    }

    override fun close() {
        session?.close()
        session = null
    }

    private fun pick(budgetMs: Double?): Variant {
        choose(manifest.variants, manifest.choices, device, runtimes, budgetMs)?.let { return it }
        val fastest = usable(manifest.variants, runtimes).minOfOrNull { it.p50Ms }
        if (budgetMs != null && fastest != null) {
            val (budget, least) = listOf(budgetMs, fastest).map { "%.4g".format(Locale.ROOT, it) }
            throw ClassifierError("a budget of $budget ms is below the fastest variant, $least ms: raise it")
        }
        val have = manifest.variants.joinToString { "${it.name} (${it.runtime})" }.ifEmpty { "nothing" }
        throw ClassifierError("no variant measured with ${runtimes.joinToString(" or ")}: the bundle has $have")
    }

    private fun change(next: Variant) {
        if (next == variant && session != null) return
        close()
        variant = next
        samplesMs.clear()
        runsSinceChange = 0
    }

    private fun load(fed: FloatArray): Session {
        val loaded = loader.load(bundle.file(variant), variant, manifest.input)
        session = loaded
        repeat(WARM_UP_RUNS) { loaded.run(fed) }
        return loaded
    }

    private fun check(logits: FloatArray) {
        if (logits.size != manifest.labels.size || !logits.all { it.isFinite() }) {
            val gave = "${variant.file} gave ${logits.size} numbers for ${manifest.labels.size} labels"
            throw ClassifierError("$gave, or some that are not finite: make the bundle again")
        }
    }

    companion object {
        const val WINDOW_RUNS = 20
        const val WARM_UP_RUNS = 3
    }
}
