package org.maestroedge.classifier

import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject
import org.json.JSONTokener

/** An expected failure: one line that says what happened and what to do. */
class ClassifierError(message: String, cause: Throwable? = null) : Exception(message, cause)

/** How an image is fed: (1, C, H, W) or (1, H, W, C), each channel (pixel / 255 - mean) / std. */
class InputSpec(
    val shape: LongArray,
    val isNchw: Boolean,
    val isCropped: Boolean,
    val mean: FloatArray,
    val std: FloatArray,
) {
    val channels = shape[if (isNchw) 1 else 3].toInt()
    val height = shape[if (isNchw) 2 else 1].toInt()
    val width = shape[if (isNchw) 3 else 2].toInt()
}

/** What the bundle's device took, in milliseconds. */
data class MeasuredMs(val p50: Double, val p90: Double)

/** One of the manifest's variants, with what an app uses of it. */
data class Variant(
    val name: String,
    val runtime: String,
    val accuracy: Double,
    val measuredMs: MeasuredMs?,
    val file: String = "",
    val entry: String? = null,
    val sha256: String = "",
    val sizeBytes: Long = 0,
    val lowRankLayers: Int = 0,
    val layers: Int = 0,
) {
    /** Infinite where it was not measured: nothing is slower. */
    val p50Ms get() = measuredMs?.p50 ?: Double.POSITIVE_INFINITY
}

/** The variant for devices of this processor and at least this much memory; null describes any. */
data class Choice(val variant: String, val soc: String?, val memoryGib: Double?, val runtime: String?)

class Manifest(
    val labels: List<String>,
    val input: InputSpec,
    val choices: List<Choice>,
    val variants: List<Variant>,
)

private const val SCHEMA = 1
private const val AGAIN = "make the bundle again"

/**
 * The manifest of the text of a manifest.json, once all that is used of it fits the schema.
 *
 * @throws ClassifierError it is cut short, of another schema, or not such a manifest.
 */
fun parseManifest(text: String): Manifest {
    val root = parseObject(text)
    checkSchema(root.opt("schema_version"))
    val where = "manifest.json"
    val variants = root.wanted<JSONArray>("variants", where).objects("$where: variants")
    return Manifest(
        labels = root.wanted<JSONArray>("labels", where).elements("$where: labels"),
        input = inputOf(root.wanted("input", where), "$where: input"),
        choices = (root.optional<JSONArray>("choices", where) ?: JSONArray()).objects("$where: choices")
            .mapIndexed { index, choice -> choiceOf(choice, "$where: choice $index") },
        variants = variants.mapIndexed { index, variant -> variantOf(variant, "$where: variant $index") },
    )
}

private fun parseObject(text: String): JSONObject =
    try {
        val tokens = JSONTokener(text)
        val root = tokens.nextValue() as? JSONObject ?: throw tokens.syntaxError("no object")
        if (tokens.nextClean() != '\u0000') throw tokens.syntaxError("more than one object")
        root
    } catch (error: JSONException) {
        val reason = "cut short or not JSON (${error.message?.substringBefore(" of ")})" // the whole text would follow
        throw ClassifierError("manifest.json: $reason: copy the bundle again", error)
    }

private fun checkSchema(found: Any?) {
    val number = (found as? Number)?.toDouble()
    if (number == SCHEMA.toDouble()) return
    val advice = if (number != null && number > SCHEMA) "a newer schema: update the app" else AGAIN
    val told = if (found is String) "'$found'" else found
    throw ClassifierError("manifest.json: schema $told, this app reads schema $SCHEMA; $advice")
}

private fun inputOf(json: JSONObject, where: String): InputSpec {
    val shape = json.wanted<JSONArray>("shape", where).elements<Int>("$where: shape").map { it.toLong() }
    val layout = json.wanted<String>("layout", where)
    val resize = json.optional<String>("resize", where) ?: "stretch"
    val (mean, std) = listOf("mean", "std").map { json.wanted<JSONArray>(it, where).numbers("$where: $it") }
    val channels = if (layout == "NCHW") shape.getOrNull(1) else shape.getOrNull(3)
    val isImage = shape.size == 4 && shape[0] == 1L && shape.all { it in 1..MAX_SIDE } && channels in setOf(1L, 3L)
    val isKnown = layout in setOf("NCHW", "NHWC") && resize in setOf("stretch", "crop") &&
        json.wanted<String>("dtype", where) == "float32"
    if (!isImage || !isKnown || mean.size.toLong() != channels || std.size != mean.size) {
        throw ClassifierError("$where is not one float32 image of 1 or 3 channels: $json: $AGAIN")
    }
    return InputSpec(shape.toLongArray(), layout == "NCHW", resize == "crop", mean, std)
}

/** Of an image's sides; more would not fit the memory of a phone. */
private const val MAX_SIDE = 8192L

private fun variantOf(json: JSONObject, where: String): Variant {
    if (!json.has("measured_ms")) throw wrong("measured_ms", where) // null says something, its absence does not
    val ranks = json.wanted<JSONObject>("ranks", where)
    return Variant(
        name = json.wanted("name", where),
        runtime = json.wanted("runtime", where),
        accuracy = json.number("accuracy", where),
        measuredMs = json.optional<JSONObject>("measured_ms", where)
            ?.let { MeasuredMs(it.positive("p50", where), it.positive("p90", where)) },
        file = json.wanted("file", where),
        entry = json.optional("entry", where),
        sha256 = json.wanted("sha256", where),
        sizeBytes = json.positive("size_bytes", where).takeIf { it % 1 == 0.0 }?.toLong()
            ?: throw wrong("size_bytes", where),
        lowRankLayers = ranks.keys().asSequence().count { ranks.opt(it) != "dense" },
        layers = ranks.length(),
    )
}

private fun choiceOf(json: JSONObject, where: String) = Choice(
    variant = json.wanted("variant", where),
    soc = json.optional("soc", where),
    memoryGib = json.optional<Number>("memory_gib", where)?.toDouble(),
    runtime = json.optional("runtime", where),
)

// org.json's own getters turn text into numbers and back; these refuse it.

private fun wrong(key: String, where: String) =
    ClassifierError("$where: '$key' is missing or of a wrong type: $AGAIN")

private inline fun <reified T : Any> JSONObject.wanted(key: String, where: String): T =
    opt(key) as? T ?: throw wrong(key, where)

private inline fun <reified T : Any> JSONObject.optional(key: String, where: String): T? =
    if (isNull(key)) null else wanted<T>(key, where)

private fun JSONObject.number(key: String, where: String): Double =
    wanted<Number>(key, where).toDouble().takeIf { it.isFinite() } ?: throw wrong(key, where)

private fun JSONObject.positive(key: String, where: String): Double =
    number(key, where).takeIf { it > 0 } ?: throw wrong(key, where)

private inline fun <reified T : Any> JSONArray.elements(where: String): List<T> =
    (0 until length()).map { opt(it) as? T ?: throw wrong(it.toString(), where) }

private fun JSONArray.objects(where: String) = elements<JSONObject>(where)

private fun JSONArray.numbers(where: String): FloatArray =
    elements<Number>(where).map { it.toFloat() }.toFloatArray()
