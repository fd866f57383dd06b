package org.maestroedge.classifier

import java.io.File
import java.io.IOException
import kotlin.random.Random
import org.json.JSONArray
import org.json.JSONObject

private const val ROUNDS = 5
private const val BENCHMARK_SCHEMA = 1

/** How a benchmark is run: so many timed runs of each variant, in a random order in each of five rounds. */
class Schedule(val runs: Int, val threads: Int, val seed: Int = 0)

/**
 * Times all variants of the bundle that these runtimes may run; what cannot be run says why instead.
 *
 * Each round loads a variant anew, so one takes memory at a time; a sample is input fed, network run, output read.
 */
class Benchmark(
    private val bundle: Bundle,
    private val runtimes: Set<String>,
    private val loader: Loader,
    private val clockNs: () -> Long = System::nanoTime,
) {
    /** One JSON object: every sample in whole nanoseconds, in order. */
    fun run(schedule: Schedule): JSONObject {
        val random = Random(schedule.seed)
        val input = bundle.manifest.input
        val image = FloatArray(input.channels * input.height * input.width) { random.nextFloat() }
        val results = bundle.manifest.variants.filter { it.runtime in runtimes }.map { Result(it) }
        for (round in 0 until ROUNDS) {
            val runs = schedule.runs * (round + 1) / ROUNDS - schedule.runs * round / ROUNDS
            if (runs == 0) continue
            for (result in results.shuffled(random)) if (result.error == null) result.add(image, runs)
        }
        return JSONObject()
            .put("schema_version", BENCHMARK_SCHEMA)
            .put("runs", schedule.runs)
            .put("threads", schedule.threads)
            .put("seed", schedule.seed)
            .put("variants", JSONArray(results.map { it.toJson() }))
    }

    private inner class Result(private val variant: Variant) {
        private val samplesNs = mutableListOf<Long>()
        var error: String? = null
            private set

        fun add(image: FloatArray, runs: Int) {
            try {
                loader.load(bundle.file(variant), variant, bundle.manifest.input).use { session ->
                    repeat(Classifier.WARM_UP_RUNS) { session.run(image) }
                    repeat(runs) {
                        val start = clockNs()
                        session.run(image)
                        samplesNs += clockNs() - start
                    }
                }
            } catch (failure: ClassifierError) {
                error = failure.message
            }
        }

        fun toJson(): JSONObject {
            val told = JSONObject().put("name", variant.name).put("runtime", variant.runtime)
            told.put("file", variant.file).put("entry", variant.entry ?: JSONObject.NULL)
            told.put("sha256", variant.sha256)
            if (error != null) return told.put("error", error)
            val ms = samplesNs.map { it / 1e6 }
            return told.put("samples_ns", JSONArray(samplesNs))
                .put("p50_ms", quantile(ms, 0.5)).put("p90_ms", quantile(ms, 0.9))
        }
    }
}

/**
 * The file of this plain name in the folder.
 *
 * @throws ClassifierError the name would leave the folder, or is not that of a .json file.
 */
fun resultFile(folder: File, name: String): File {
    if (!Regex("[A-Za-z0-9_-][A-Za-z0-9._-]*\\.json").matches(name)) {
        throw ClassifierError("'$name' is not a plain file name: give one such as out.json")
    }
    return File(folder, name)
}

/**
 * Writes beside the file, then renames: whoever pulls it never gets half of it.
 *
 * @throws ClassifierError the folder cannot be written.
 */
fun writeAtomically(file: File, text: String) {
    val aside = File(file.path + ".part")
    try {
        aside.writeText(text)
        if (!aside.renameTo(file)) throw IOException("it cannot be replaced")
    } catch (error: IOException) {
        aside.delete()
        throw ClassifierError("$file cannot be written (${error.message}): free some storage", error)
    }
}
