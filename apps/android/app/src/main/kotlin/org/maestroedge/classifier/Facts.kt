package org.maestroedge.classifier

import java.io.File
import java.io.IOException
import java.util.Locale
import kotlin.math.roundToInt
import org.json.JSONArray
import org.json.JSONObject

/** What Android tells of a phone; the processor's names since Android 12. */
class Phone(
    val manufacturer: String,
    val model: String,
    val socManufacturer: String?,
    val socModel: String?,
    val release: String,
    val fingerprint: String,
    val cores: Int,
)

/** The processor's name, as a profile over adb writes it; before Android 12 the phone's. */
fun Phone.soc(): String {
    val told = listOfNotNull(socManufacturer, socModel).filter { it.isNotBlank() && it != "unknown" }
    return (told.ifEmpty { listOf(manufacturer, model) }).joinToString(" ")
}

/** What Linux tells an app under `root`; null where this phone keeps it from apps. */
class Kernel(private val root: File = File("/")) {
    val memoryGib: Double?
        get() = first("proc/meminfo")?.let { Regex("^MemTotal: *(\\d+)").find(it) }
            ?.let { (it.groupValues[1].toLong() / 104857.6).roundToInt() / 10.0 }

    val governor: String? get() = first("${cpu(0)}/scaling_governor")

    /** The maximum of each core; empty where one of them is not told. */
    fun coreMhz(cores: Int): List<Int> {
        val told = (0 until cores).mapNotNull { first("${cpu(it)}/cpuinfo_max_freq")?.toIntOrNull() }
        return if (told.size == cores) told.map { it / 1000 } else emptyList()
    }

    private fun cpu(core: Int) = "sys/devices/system/cpu/cpu$core/cpufreq"

    private fun first(path: String): String? = try {
        File(root, path).bufferedReader().use { it.readLine() }?.trim()
    } catch (_: IOException) {
        null
    }
}

/** The device as a profile of it has it (DeviceFacts); `isThrottled` is null where the phone does not tell. */
fun deviceFacts(phone: Phone, kernel: Kernel, isThrottled: Boolean?): JSONObject {
    val name = "${phone.manufacturer} ${phone.model} ${phone.cores}c".lowercase(Locale.ROOT)
    val system = "${System.getProperty("os.name")} ${System.getProperty("os.version")}"
    return JSONObject()
        .put("name", name.replace(Regex("[^a-z0-9]+"), "-").trim('-'))
        .put("soc", phone.soc())
        .put("arch", System.getProperty("os.arch"))
        .put("cores", phone.cores)
        .put("os", "Android ${phone.release}, $system")
        .put("build", phone.fingerprint)
        .put("memory_gib", kernel.memoryGib ?: JSONObject.NULL)
        .put("governor", kernel.governor ?: JSONObject.NULL)
        .put("core_mhz", JSONArray(kernel.coreMhz(phone.cores)))
        .put("throttled", isThrottled ?: JSONObject.NULL)
}
