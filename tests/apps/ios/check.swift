// The app's own logic on what a test sends as JSON: compiled together with Sources/MaestroBundle.

import Foundation

struct Request: Decodable {
    struct Quantile: Decodable {
        let samples: [Double]
        let share: Double
    }

    struct Picture: Decodable {
        let height: Int
        let width: Int
        let channels: Int
        let bytes: [UInt8]
        let input: InputSpec

        func pixels() throws -> Pixels {
            try Pixels(height: height, width: width, channels: channels, bytes: bytes)
        }
    }

    let quantiles: [Quantile]
    let pictures: [Picture]
    let bundles: [String]
}

struct Answer: Encodable {
    struct Bundle: Encodable {
        var variants: [String] = []
        var entries: [String: String] = [:]
        var refusal: String?
    }

    let quantiles: [Double]
    let pictures: [[Float]]
    let bundles: [Bundle]
}

/// CryptoKit's part: FIPS 180-4, section 6.2.
func sha256(_ data: Data) -> String {
    let primes = (2...311).filter { number in !(2..<number).contains { number % $0 == 0 } }
    let keys = primes.map { fraction(cbrt(Double($0))) }
    var hash = primes.prefix(8).map { fraction(Double($0).squareRoot()) }
    var bytes = [UInt8](data) + [0x80]
    bytes += [UInt8](repeating: 0, count: (120 - bytes.count % 64) % 64)
    bytes += withUnsafeBytes(of: UInt64(8 * data.count).bigEndian, Array.init)
    for start in stride(from: 0, to: bytes.count, by: 64) {
        var words = stride(from: start, to: start + 64, by: 4).map { place in
            bytes[place..<place + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        }
        for place in 16..<64 {
            let (early, late) = (words[place - 15], words[place - 2])
            let low: UInt32 = turned(early, 7) ^ turned(early, 18) ^ (early >> 3)
            let high: UInt32 = turned(late, 17) ^ turned(late, 19) ^ (late >> 10)
            words.append(words[place - 16] &+ low &+ words[place - 7] &+ high)
        }
        var state = hash
        for place in 0..<64 {
            let (a, e) = (state[0], state[4])
            let chosen: UInt32 = (e & state[5]) ^ (~e & state[6])
            let most: UInt32 = (a & state[1]) ^ (a & state[2]) ^ (state[1] & state[2])
            let mixed: UInt32 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)
            let added: UInt32 = state[7] &+ mixed &+ chosen &+ keys[place] &+ words[place]
            let spread: UInt32 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)
            state[3] &+= added
            state = [added &+ spread &+ most] + state.dropLast()
        }
        hash = zip(hash, state).map { $0 &+ $1 }
    }
    return hash.map { String(format: "%08x", $0) }.joined()
}

/// The first 32 bits behind the point.
func fraction(_ root: Double) -> UInt32 { UInt32((root - root.rounded(.down)) * 4_294_967_296) }

func turned(_ word: UInt32, _ bits: UInt32) -> UInt32 { word >> bits | word << (32 - bits) }

/// Every variant whose file may be loaded, or the one line that says why one may not.
func opened(_ path: String) throws -> Answer.Bundle {
    var answer = Answer.Bundle()
    do {
        let bundle = try OpenBundle(at: URL(fileURLWithPath: path), sha256: sha256)
        for variant in bundle.manifest.variants {
            _ = try checkedFile(in: bundle.folder, of: variant, sha256: sha256)
            answer.variants.append(variant.name)
            answer.entries[variant.name] = variant.entry
        }
    } catch let failure as Failure {
        answer.refusal = failure.errorDescription
    }
    return answer
}

@main struct Check {
    static func main() throws {
        let input = FileHandle.standardInput.readDataToEndOfFile()
        let request = try JSONDecoder().decode(Request.self, from: input)
        let answer = Answer(
            quantiles: request.quantiles.map { quantile($0.samples, $0.share) },
            pictures: try request.pictures.map { prepare(try $0.pixels(), $0.input) },
            bundles: try request.bundles.map(opened))
        FileHandle.standardOutput.write(try JSONEncoder().encode(answer))
    }
}
