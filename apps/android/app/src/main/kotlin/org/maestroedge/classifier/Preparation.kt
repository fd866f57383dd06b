package org.maestroedge.classifier

import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

/** An upright image: its pixels 0xRRGGBB, row by row; what stands above them, an alpha, is ignored. */
class Image(val width: Int, val height: Int, val pixels: IntArray) {
    init {
        require(width > 0 && height > 0 && pixels.size == width * height) { "$width x $height: ${pixels.size}" }
    }
}

/** What the model is fed, in the layout of `input`: cropped or stretched, normalised. */
fun prepare(image: Image, input: InputSpec): FloatArray {
    val scale = min(image.height.toDouble() / input.height, image.width.toDouble() / input.width)
    val (high, wide) = if (input.isCropped) listOf(scale * input.height, scale * input.width)
    else listOf(image.height.toDouble(), image.width.toDouble())
    val rows = weigh(image.height, high, input.height)
    val columns = weigh(image.width, wide, input.width)
    val top = rows.first().first
    val narrowed = List(rows.last().end - top) { narrow(image, top + it, columns, input.channels) } // each (C, W)
    val fed = FloatArray(input.channels * input.height * input.width)
    for (channel in 0 until input.channels) {
        for ((y, row) in rows.withIndex()) {
            for (x in 0 until input.width) {
                var pixel = 0f
                for ((i, weight) in row.weights.withIndex()) {
                    pixel += weight * narrowed[row.first - top + i][channel * input.width + x]
                }
                fed[input.at(channel, y, x)] = (pixel / 255 - input.mean[channel]) / input.std[channel]
            }
        }
    }
    return fed
}

private fun InputSpec.at(channel: Int, y: Int, x: Int) =
    if (isNchw) (channel * height + y) * width + x else (y * width + x) * channels + channel

/** The pixels from `first` on that one resized pixel is made of, and their shares. */
private class Taps(val first: Int, val weights: FloatArray) {
    val end = first + weights.size
}

/**
 * Bilinear with half-pixel centres, over all pixels below one resized pixel when it shrinks.
 *
 * Only the centred `part` of the size is resized; what borders it counts, as in Pillow's box.
 */
private fun weigh(size: Int, part: Double, to: Int): List<Taps> {
    val step = part / to
    val reach = max(step, 1.0)
    return List(to) { place ->
        val middle = (size - part) / 2 + (place + 0.5) * step - 0.5
        val first = max(0, ceil(middle - reach).toInt())
        val last = min(size - 1, floor(middle + reach).toInt())
        val shares = (first..last).map { max(0.0, 1 - abs(it - middle) / reach) }
        val sum = shares.sum()
        Taps(first, shares.map { (it / sum).toFloat() }.toFloatArray())
    }
}

/** Row y, resized to the columns: the channels one after the other. */
private fun narrow(image: Image, y: Int, columns: List<Taps>, channels: Int): FloatArray {
    val row = FloatArray(channels * columns.size)
    val start = y * image.width
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
