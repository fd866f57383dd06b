// From an image to what the network is fed, number for number as validation feeds it.

/// 8-bit pixels in rows from the top, interleaved: count = height × width × channels.
public struct Pixels: Sendable {
    public let height: Int
    public let width: Int
    /// 1 (grey) or 3 (red, green, blue).
    public let channels: Int
    public let bytes: [UInt8]

    public init(height: Int, width: Int, channels: Int, bytes: [UInt8]) throws {
        guard height > 0, width > 0, [1, 3].contains(channels), bytes.count == height * width * channels else {
            throw Failure("\(bytes.count) bytes are no image of \(height) x \(width) x \(channels): give another")
        }
        self.height = height
        self.width = width
        self.channels = channels
        self.bytes = bytes
    }
}

/// Pixels to the network's input, in the layout of `spec`.
public func prepare(_ image: Pixels, _ spec: InputSpec) -> [Float] {
    let grey = image.channels > spec.channels ? luma(image) : image
    let whole = (height: Double(image.height), width: Double(image.width))
    let box = spec.resize == .crop ? centre(of: whole, like: spec) : whole
    let rows = taps(size: image.height, part: box.height, to: spec.height)
    let columns = taps(size: image.width, part: box.width, to: spec.width)
    let planes = resized(grey, rows: rows, columns: columns)
    let (area, channels) = (spec.height * spec.width, spec.channels)
    var output = [Float](repeating: 0, count: channels * area)
    for channel in 0..<channels {
        let plane = channel % grey.channels  // a grey image is each colour of the input
        for place in 0..<area {
            let pixel: Float = planes[place * grey.channels + plane] / 255
            let value: Float = (pixel - spec.mean[channel]) / spec.std[channel]
            output[spec.layout == .nchw ? channel * area + place : place * channels + channel] = value
        }
    }
    return output
}

/// ITU-R 601 luma, in the fixed point that Pillow's convert("L") uses.
private func luma(_ image: Pixels) -> Pixels {
    let grey = (0..<image.height * image.width).map { place -> UInt8 in
        let red = UInt32(image.bytes[3 * place])
        let green = UInt32(image.bytes[3 * place + 1])
        let blue = UInt32(image.bytes[3 * place + 2])
        let weighted: UInt32 = 19595 * red + 38470 * green + 7471 * blue
        return UInt8((weighted + 0x8000) >> 16)
    }
    return try! Pixels(height: image.height, width: image.width, channels: 1, bytes: grey)  // one byte a pixel
}

/// The largest part of the image that has the input's aspect ratio.
private func centre(
    of whole: (height: Double, width: Double), like spec: InputSpec
) -> (height: Double, width: Double) {
    let (height, width) = (Double(spec.height), Double(spec.width))
    let scale: Double = min(whole.height / height, whole.width / width)
    return (scale * height, scale * width)
}

/// The pixels that one output pixel is a weighted mean of: those from `first` on.
private struct Taps {
    let first: Int
    let weights: [Float]
}

/// Bilinear weights over the centred `part` of `size` pixels, antialiased when shrinking, as in Pillow.
private func taps(size: Int, part: Double, to: Int) -> [Taps] {
    let step: Double = part / Double(to)
    let reach: Double = max(step, 1)
    let begin: Double = 0.5 * (Double(size) - part)
    return (0..<to).map { (index: Int) -> Taps in
        let centre: Double = begin + (Double(index) + 0.5) * step - 0.5  // in steps of pixel centres
        let first: Int = max(0, Int((centre - reach).rounded(.up)))
        let last: Int = min(size - 1, Int((centre + reach).rounded(.down)))
        let raw = (first...last).map { (place: Int) -> Double in
            let distance: Double = abs(Double(place) - centre)
            return max(0, 1 - distance / reach)
        }
        let total: Double = raw.reduce(0, +)
        return Taps(first: first, weights: raw.map { Float($0 / total) })
    }
}

/// Interleaved channels of rows.count × columns.count: first down the columns, then along the rows.
private func resized(_ image: Pixels, rows: [Taps], columns: [Taps]) -> [Float] {
    let (channels, line) = (image.channels, image.width * image.channels)
    var output: [Float] = []
    output.reserveCapacity(rows.count * columns.count * channels)
    image.bytes.withUnsafeBufferPointer { bytes in
        for row in rows {
            var mixed = [Float](repeating: 0, count: line)
            for (offset, weight) in row.weights.enumerated() {
                let start = (row.first + offset) * line
                for place in 0..<line { mixed[place] += weight * Float(bytes[start + place]) }
            }
            for column in columns {
                for channel in 0..<channels {
                    var sum: Float = 0
                    for (offset, weight) in column.weights.enumerated() {
                        sum += weight * mixed[(column.first + offset) * channels + channel]
                    }
                    output.append(sum)
                }
            }
        }
    }
    return output
}
