package org.maestroedge.classifier

import android.content.Context
import android.graphics.Bitmap
import android.os.Build
import android.os.PowerManager
import java.io.File

/** The bundle that was built into the app; its files are unpacked where an update of the app clears them. */
fun Context.bundle() = Bundle(File(codeCacheDir, "model")) { name -> assets.open("model/$name") }

fun device() = Device(phone().soc(), Kernel().memoryGib ?: 0.0)

fun phone() = Phone(
    manufacturer = Build.MANUFACTURER,
    model = Build.MODEL,
    socManufacturer = if (Build.VERSION.SDK_INT >= 31) Build.SOC_MANUFACTURER else null,
    socModel = if (Build.VERSION.SDK_INT >= 31) Build.SOC_MODEL else null,
    release = Build.VERSION.RELEASE,
    fingerprint = Build.FINGERPRINT,
    cores = Runtime.getRuntime().availableProcessors(),
)

/** From 0, none, to 6, shutting down: PowerManager.THERMAL_STATUS_NONE and what follows. */
fun Context.thermalStatus(): Int = getSystemService(PowerManager::class.java).currentThermalStatus

/** From moderate on the phone lowers its clocks for long. */
fun Context.isHot() = thermalStatus() >= PowerManager.THERMAL_STATUS_MODERATE

fun Bitmap.toImage(): Image {
    val pixels = IntArray(width * height)
    getPixels(pixels, 0, width, 0, 0, width, height)
    return Image(width, height, pixels)
}
