// benchmark.json: the times of a bundle's variants on this phone, which stand in for those of its manifest.

import Foundation

public struct Benchmark: Codable, Sendable {
    /// Of the bytes of manifest.json: the times belong to that bundle and to no other.
    public let manifestSha256: String
    public let created: String
    public let computeUnits: String
    public let device: PhoneFacts
    public let thermalBefore: String
    public let thermalAfter: String
    public let lowPower: Bool
    /// Variant → whole ns of a monotonic clock, in the order in which they were taken.
    public let samplesNs: [String: [UInt64]]
    /// Variant → why it could not be run here.
    public let failures: [String: String]
    let schemaVersion: Int

    enum CodingKeys: String, CodingKey {
        case created, device, failures
        case schemaVersion = "schema_version"
        case manifestSha256 = "manifest_sha256"
        case computeUnits = "compute_units"
        case thermalBefore = "thermal_before"
        case thermalAfter = "thermal_after"
        case lowPower = "low_power"
        case samplesNs = "samples_ns"
    }

    public init(
        manifestSha256: String, computeUnits: String, device: PhoneFacts, before: PhoneState, after: PhoneState,
        samplesNs: [String: [UInt64]], failures: [String: String]
    ) {
        schemaVersion = 1
        created = ISO8601DateFormatter().string(from: Date())
        thermalBefore = before.thermal
        thermalAfter = after.thermal
        lowPower = before.lowPower || after.lowPower
        self.manifestSha256 = manifestSha256
        self.computeUnits = computeUnits
        self.device = device
        self.samplesNs = samplesNs
        self.failures = failures
    }

    /// Whole or not at all.
    public func write(to url: URL) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        try encoder.encode(self).write(to: url, options: .atomic)
    }

    /// What was written for this manifest; nil where there is none, or only that of another one.
    public init?(at url: URL, manifestSha256: String) {
        guard let data = try? Data(contentsOf: url),
            let found = try? JSONDecoder().decode(Benchmark.self, from: data),
            found.schemaVersion == 1, found.manifestSha256 == manifestSha256
        else { return nil }
        self = found
    }

    /// The variants with this phone's times alone: another device's are not to be compared with them.
    public func timed(_ variants: [Variant]) -> [Variant] {
        variants.map { variant in
            let samplesMs = (samplesNs[variant.name] ?? []).map { Double($0) / 1e6 }
            guard !samplesMs.isEmpty else { return variant.timed(nil) }
            return variant.timed(MeasuredMs(p50: quantile(samplesMs, 0.5), p90: quantile(samplesMs, 0.9)))
        }
    }
}
