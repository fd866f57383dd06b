// Runs the app's logic on a JVM: one JSON object a line in, one out.
package org.maestroedge.classifier.driver

import java.io.File
import org.json.JSONArray
import org.json.JSONObject
import org.maestroedge.classifier.Benchmark
import org.maestroedge.classifier.Bundle
import org.maestroedge.classifier.Choice
import org.maestroedge.classifier.Classifier
import org.maestroedge.classifier.ClassifierError
import org.maestroedge.classifier.Device
import org.maestroedge.classifier.Image
import org.maestroedge.classifier.InputSpec
import org.maestroedge.classifier.Kernel
import org.maestroedge.classifier.Loader
import org.maestroedge.classifier.MeasuredMs
import org.maestroedge.classifier.Phone
import org.maestroedge.classifier.Schedule
import org.maestroedge.classifier.Session
import org.maestroedge.classifier.Variant
import org.maestroedge.classifier.adapt
import org.maestroedge.classifier.budgetSteps
import org.maestroedge.classifier.choose
import org.maestroedge.classifier.deviceFacts
import org.maestroedge.classifier.likeliest
import org.maestroedge.classifier.parseManifest
import org.maestroedge.classifier.prepare
import org.maestroedge.classifier.quantile
import org.maestroedge.classifier.resultFile
import org.maestroedge.classifier.writeAtomically

fun main() {
    while (true) {
        val request = JSONObject(readLine() ?: break)
        val answer = try {
            JSONObject().put("answer", answer(request) ?: JSONObject.NULL)
        } catch (error: ClassifierError) {
            JSONObject().put("error", error.message)
        }
        println(answer)
    }
}

private fun answer(ask: JSONObject): Any? = when (ask.getString("task")) {
    "choose" -> chosen(ask)
    "adapt" -> adapted(ask)
    "steps" -> JSONArray(budgetSteps(variants(ask), runtimes(ask), 4))
    "quantile" -> quantile(numbers(ask, "samples"), ask.getDouble("share"))
    "likeliest" -> likeliest(floats(ask, "logits"), texts(ask, "labels"))
        .let { guesses -> JSONArray(guesses.map { JSONArray(listOf(it.label, it.probability)) }) }
    "prepare" -> parseManifest(ask.getString("manifest")).input
        .let { input -> JSONArray(prepare(imageOf(ask), input).map { it.toDouble() }) }
    "file" -> bundleOf(ask).let { bundle -> bundle.file(bundle.variant(ask.getString("variant"))).path }
    "live" -> live(ask)
    "benchmark" -> Benchmark(bundleOf(ask), runtimes(ask), Fake(ask), Fake.Clock::ns)
        .run(Schedule(ask.getInt("runs"), threads = 1))
    "write" -> resultFile(File(ask.getString("folder")), ask.getString("name"))
        .also { writeAtomically(it, ask.getString("text")) }.path
    "facts" -> factsOf(ask)
    else -> error("no such task: $ask")
}

private fun chosen(ask: JSONObject): String? {
    val choices = ask.getJSONArray("choices").objects().map(::choiceOf)
    val device = deviceOf(ask.getJSONObject("device"))
    return choose(variants(ask), choices, device, runtimes(ask), ask.optional("budget_ms"))?.name
}

private fun adapted(ask: JSONObject): String {
    val all = variants(ask)
    val current = all.first { it.name == ask.getString("current") }
    val (liveMs, isHot) = ask.getDouble("live_ms") to ask.getBoolean("hot")
    return adapt(all, current, liveMs, ask.optional("budget_ms"), isHot, runtimes(ask)).name
}

/** The variant after each of the steps: a number of runs in a heat, or a new budget. */
private fun live(ask: JSONObject): JSONArray {
    val classifier = Classifier(bundleOf(ask), Device(null, 0.0), runtimes(ask), Fake(ask), Fake.Clock::ns)
    val names = ask.getJSONArray("steps").objects().map { step ->
        if (step.has("budget_ms")) classifier.allow(step.optional("budget_ms"))
        repeat(step.optInt("runs")) {
            val outcome = classifier.classify(Image(1, 1, intArrayOf(0)))
            check(outcome.p50Ms <= outcome.p90Ms && outcome.variant == classifier.variant)
            classifier.reconsider(step.optBoolean("hot"))
        }
        classifier.variant.name
    }
    classifier.close()
    return JSONArray(names)
}

/** Sessions that take the times they are told, by a clock of their own; a variant without one cannot be loaded. */
private class Fake(ask: JSONObject) : Loader {
    private val times = ask.getJSONObject("times_ms")
    private val labels = bundleOf(ask).manifest.labels.size

    override fun load(file: File, variant: Variant, input: InputSpec): Session {
        if (!times.has(variant.name)) throw ClassifierError("${variant.name} cannot be loaded")
        return object : Session {
            override fun run(image: FloatArray): FloatArray {
                Clock.now += (times.getDouble(variant.name) * 1e6).toLong()
                return FloatArray(labels) { it.toFloat() }
            }

            override fun close() = Unit
        }
    }

    object Clock {
        var now = 0L
        fun ns() = now
    }
}

private fun factsOf(ask: JSONObject): JSONObject {
    fun text(key: String) = if (ask.isNull(key)) null else ask.getString(key)
    val (made, model, release) = listOf("manufacturer", "model", "release").map { ask.getString(it) }
    val (maker, soc) = listOf("soc_manufacturer", "soc_model").map(::text)
    val phone = Phone(made, model, maker, soc, release, ask.getString("fingerprint"), ask.getInt("cores"))
    return deviceFacts(phone, Kernel(File(ask.getString("root"))), isThrottled = null)
}

private fun bundleOf(ask: JSONObject) =
    Bundle(File(ask.getString("cache"))) { File(ask.getString("bundle"), it).inputStream() }

private fun Bundle.variant(name: String) = manifest.variants.first { it.name == name }

private fun imageOf(ask: JSONObject): Image {
    val pixels = ask.getJSONArray("pixels")
    return Image(ask.getInt("width"), ask.getInt("height"), IntArray(pixels.length()) { pixels.getInt(it) })
}

private fun variants(ask: JSONObject) = ask.getJSONArray("variants").objects().map { json ->
    val measured = json.optJSONObject("measured_ms")?.let { MeasuredMs(it.getDouble("p50"), it.getDouble("p90")) }
    Variant(json.getString("name"), json.getString("runtime"), json.getDouble("accuracy"), measured)
}

private fun choiceOf(json: JSONObject): Choice {
    fun text(key: String) = if (json.isNull(key)) null else json.getString(key)
    return Choice(json.getString("variant"), text("soc"), json.optional("memory_gib"), text("runtime"))
}

private fun deviceOf(json: JSONObject) =
    Device(if (json.isNull("soc")) null else json.getString("soc"), json.optional("memory_gib") ?: 0.0)

private fun JSONObject.optional(key: String): Double? = if (isNull(key)) null else getDouble(key)

private fun JSONArray.objects() = List(length()) { getJSONObject(it) }

private fun texts(json: JSONObject, key: String) =
    json.getJSONArray(key).let { List(it.length()) { at -> it.getString(at) } }

private fun runtimes(json: JSONObject) = texts(json, "runtimes").toSet()

private fun numbers(json: JSONObject, key: String) =
    json.getJSONArray(key).let { List(it.length()) { at -> it.getDouble(at) } }

private fun floats(json: JSONObject, key: String) = numbers(json, key).map { it.toFloat() }.toFloatArray()
