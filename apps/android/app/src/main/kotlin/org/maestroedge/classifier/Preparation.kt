package org.maestroedge.classifier

import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.roundToInt

/** An upright image: its pixels 0xRRGGBB, row by row; what stands above them, an alpha, is ignored. */
class Image(val width: Int, val height: Int, val pixels: IntArray) {
    init {
        require(width > 0 && height > 0 && pixels.size == width * height) { "$width x $height: ${pixels.size}" }
    }
}

/** What the model is fed, in the layout of `input`: cropped or stretched, normalised. */
fun prepare(image: Image, input: InputSpec): FloatArray {
    val part = if (input.isCropped) centre(image, input) else Part(0, 0, image.width, image.height)
    val columns = weigh(part.width, input.width)
    val rows = weigh(part.height, input.height)
    val narrowed = Array(part.height) { y -> narrow(image, part, y, columns, input.channels) } // each (C, W)
    val fed = FloatArray(input.channels * input.height * input.width)
    for (channel in 0 until input.channels) {
        for ((y, row) in rows.withIndex()) {
            for (x in 0 until input.width) {
                var pixel = 0f
                for ((i, weight) in row.weights.withIndex()) {
                    pixel += weight * narrowed[row.first + i][channel * input.width + x]
                }
                fed[input.at(channel, y, x)] = (pixel / 255 - input.mean[channel]) / input.std[channel]
            }
        }
    }
    return fed
}

private fun InputSpec.at(channel: Int, y: Int, x: Int) =
    if (isNchw) (channel * height + y) * width + x else (y * width + x) * channels + channel

private class Part(val left: Int, val top: Int, val width: Int, val height: Int)

/** The largest centred part of the input's aspect ratio, in whole pixels. */
private fun centre(image: Image, input: InputSpec): Part {
    val aspect = input.width.toDouble() / input.height
    val width = (image.height * aspect).roundToInt().coerceIn(1, image.width)
    val height = (image.width / aspect).roundToInt().coerceIn(1, image.height)
    return Part((image.width - width) / 2, (image.height - height) / 2, width, height)
}

/** The pixels from `first` on that one resized pixel is made of, and their shares. */
private class Taps(val first: Int, val weights: FloatArray)

/** Bilinear with half-pixel centres, over all pixels below one resized pixel when it shrinks. */
private fun weigh(size: Int, to: Int): List<Taps> {
    val step = size.toDouble() / to
    val reach = max(step, 1.0)
    return List(to) { place ->
        val middle = (place + 0.5) * step - 0.5
        val first = max(0, ceil(middle - reach).toInt())
        val last = min(size - 1, floor(middle + reach).toInt())
        val shares = (first..last).map { max(0.0, 1 - abs(it - middle) / reach) }
        val sum = shares.sum()
        Taps(first, shares.map { (it / sum).toFloat() }.toFloatArray())
    }
}

/** Row y of a part, resized to the columns: the channels one after the other. */
private fun narrow(image: Image, part: Part, y: Int, columns: List<Taps>, channels: Int): FloatArray {
    val row = FloatArray(channels * columns.size)
    val start = (part.top + y) * image.width + part.left
    for (channel in 0 until channels) {
        for ((x, column) in columns.withIndex()) {
            var sum = 0f
            for ((i, weight) in column.weights.withIndex()) {
                sum += weight * level(image.pixels[start + column.first + i], channel, channels)
            }
            row[channel * columns.size + x] = sum
        }
    }
    return row
}

/** 0 to 255: the channel, or of one channel the ITU-R 601 luma in the fixed point of Pillow's convert("L"). */
private fun level(pixel: Int, channel: Int, channels: Int): Int {
    if (channels == 3) return pixel shr (16 - 8 * channel) and 255
    return 19595 * (pixel shr 16 and 255) + 38470 * (pixel shr 8 and 255) + 7471 * (pixel and 255) + 0x8000 shr 16
}
