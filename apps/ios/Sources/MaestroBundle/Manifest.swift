// manifest.json as far as this app uses it (the schema of all of it is apps/manifest.schema.json).

import Foundation

public struct Manifest: Decodable, Sendable {
    public struct Device: Decodable, Sendable {
        public let name: String
    }

    public let device: Device
    public let labels: [String]
    public let input: InputSpec
    public let choices: [Choice]
    public let variants: [Variant]

    enum CodingKeys: String, CodingKey { case device, labels, input, choices, variants }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        device = try values.decode(Device.self, forKey: .device)
        labels = try values.decode([String].self, forKey: .labels)
        input = try values.decode(InputSpec.self, forKey: .input)
        choices = try values.decodeIfPresent([Choice].self, forKey: .choices) ?? []
        variants = try values.decode([Variant].self, forKey: .variants)
    }

    /// Reads the bytes of manifest.json; what no app of schema 1 can run is refused here, in one line.
    public init(manifest data: Data) throws {
        try refuseOtherSchema(data)
        do {
            self = try JSONDecoder().decode(Manifest.self, from: data)
        } catch let error as DecodingError {
            throw Failure("manifest.json: \(reason(error)): make the bundle again")
        }
        try input.check()
        for (index, variant) in variants.enumerated() { try variant.check("manifest.json: variant \(index)") }
    }
}

/// How the network is fed: resized, then (pixel / 255 - mean) / std per channel, in this layout.
public struct InputSpec: Decodable, Sendable {
    public enum Layout: String, Decodable, Sendable { case nchw = "NCHW", nhwc = "NHWC" }
    public enum Resize: String, Decodable, Sendable { case stretch, crop }

    public let shape: [Int]
    public let layout: Layout
    public let resize: Resize
    public let mean: [Float]
    public let std: [Float]
    let dtype: String

    public var channels: Int { layout == .nchw ? shape[1] : shape[3] }
    public var height: Int { layout == .nchw ? shape[2] : shape[1] }
    public var width: Int { layout == .nchw ? shape[3] : shape[2] }

    enum CodingKeys: String, CodingKey { case shape, layout, resize, mean, std, dtype }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        shape = try values.decode([Int].self, forKey: .shape)
        layout = try values.decodeIfPresent(Layout.self, forKey: .layout) ?? .nchw
        resize = try values.decodeIfPresent(Resize.self, forKey: .resize) ?? .stretch
        mean = try values.decode([Float].self, forKey: .mean)
        std = try values.decode([Float].self, forKey: .std)
        dtype = try values.decodeIfPresent(String.self, forKey: .dtype) ?? "float32"
    }

    func check() throws {
        let isImage = shape.count == 4 && shape[0] == 1 && shape.allSatisfy { (1...16_384).contains($0) }
        guard isImage, dtype == "float32", [1, 3].contains(channels),
            mean.count == channels, std.count == channels, std.allSatisfy({ $0 != 0 })
        else {
            throw Failure(
                "manifest.json: input is not one float32 image of 1 or 3 channels: \(dtype) \(shape), "
                    + "mean \(mean), std \(std): make a bundle of an image network")
        }
    }
}

/// The variant for the devices that it describes; nil describes any.
public struct Choice: Decodable, Sendable {
    public let soc: String?
    public let memoryGib: Double?
    public let runtime: String?
    public let variant: String

    enum CodingKeys: String, CodingKey {
        case soc, runtime, variant
        case memoryGib = "memory_gib"
    }
}

public struct MeasuredMs: Decodable, Sendable, Equatable {
    public let p50: Double
    public let p90: Double

    public init(p50: Double, p90: Double) {
        self.p50 = p50
        self.p90 = p90
    }
}

public struct Variant: Decodable, Sendable {
    public let name: String
    public let runtime: String
    public let file: String
    /// Method or function of a file that several variants share.
    public let entry: String?
    public let sha256: String
    public let sizeBytes: Int
    public let accuracy: Double
    public private(set) var measuredMs: MeasuredMs?

    enum CodingKeys: String, CodingKey {
        case name, runtime, file, entry, sha256, accuracy
        case sizeBytes = "size_bytes"
        case measuredMs = "measured_ms"
    }

    /// The same with other times, or with none.
    public func timed(_ times: MeasuredMs?) -> Variant {
        var copy = self
        copy.measuredMs = times
        return copy
    }

    func check(_ place: String) throws {
        let times = measuredMs.map { [$0.p50, $0.p90] } ?? []
        guard times.allSatisfy({ $0 > 0 }), sizeBytes > 0, (0...1).contains(accuracy) else {
            throw Failure(
                "\(place): times \(times) ms, \(sizeBytes) bytes and an accuracy of \(accuracy) cannot all be: "
                    + "make the bundle again")
        }
    }
}

// MARK: - Refusals

private func refuseOtherSchema(_ data: Data) throws {
    struct Head: Decodable {
        let schemaVersion: Int

        enum CodingKeys: String, CodingKey { case schemaVersion = "schema_version" }
    }
    do {
        let found = try JSONDecoder().decode(Head.self, from: data).schemaVersion
        if found != 1 {
            let advice = found > 1 ? "a newer schema: update this app" : "make the bundle again"
            throw Failure("manifest.json: schema \(found), this app reads schema 1; \(advice)")
        }
    } catch DecodingError.dataCorrupted(let context) where context.codingPath.isEmpty {
        throw Failure("manifest.json: cut short or not JSON: copy the bundle again")
    } catch let error as DecodingError {
        throw Failure("manifest.json: \(reason(error)); this app reads schema 1: make the bundle again")
    }
}

/// Where in the file, and what is wrong there.
private func reason(_ error: DecodingError) -> String {
    func place(_ path: [any CodingKey]) -> String {
        let names = path.map { $0.intValue.map(String.init) ?? $0.stringValue }
        return names.isEmpty ? "top level" : names.joined(separator: ".")
    }
    switch error {
    case .keyNotFound(let key, let context): return "\(place(context.codingPath + [key])) is missing"
    case .valueNotFound(_, let context): return "\(place(context.codingPath)) is null"
    case .typeMismatch(_, let context): return "\(place(context.codingPath)) is of a wrong type"
    case .dataCorrupted(let context): return "\(place(context.codingPath)) has a value that does not fit"
    @unknown default: return "does not fit its schema"
    }
}
