// The two JSON files: probes.json in, answers.json out. Nothing here knows Core ML or a phone.

import Foundation
import MaestroBundle

// MARK: - probes.json, as far as a phone reads it

struct Probes: Decodable {
    struct File: Decodable {
        let file: String
        let sha256: String
        let inputShape: [Int]

        enum CodingKeys: String, CodingKey {
            case file, sha256
            case inputShape = "input_shape"
        }
    }

    struct Schedule: Decodable {
        let warmupMs: Double
        let rounds: Int
        let sliceMs: Double
        let runs: Int
        let pauseS: Double
        let coolS: Double
        let seed: Int
        let stages: [[String]]

        var pace: Pace { Pace(warmupMs: warmupMs, rounds: rounds, sliceMs: sliceMs) }

        enum CodingKeys: String, CodingKey {
            case rounds, runs, seed, stages
            case warmupMs = "warmup_ms"
            case sliceMs = "slice_ms"
            case pauseS = "pause_s"
            case coolS = "cool_s"
        }
    }

    let schemaVersion: Int
    let runtime: String
    let files: [File]
    let schedule: Schedule

    enum CodingKeys: String, CodingKey {
        case runtime, files, schedule
        case schemaVersion = "schema_version"
    }

    /// Reads the bytes of probes.json; whatever cannot be measured is refused before anything is.
    init(probes data: Data) throws {
        self = try JSONDecoder().decode(Probes.self, from: data)
        guard schemaVersion == 1, runtime == "coreml" else {
            throw Failure("probes.json is of schema \(schemaVersion) and \(runtime), not of schema 1 and coreml")
        }
        let names = Set(files.map(\.file))
        guard names.count == files.count, names == Set(schedule.stages.joined()) else {
            throw Failure("probes.json names other files than its stages")
        }
        guard names.allSatisfy({ !$0.contains("/") && !$0.hasPrefix(".") }) else {
            throw Failure("probes.json names a file outside of its folder")
        }
        guard schedule.rounds > 0, schedule.runs > 0, schedule.sliceMs > 0, schedule.warmupMs >= 0 else {
            throw Failure("probes.json has a schedule without measurements")
        }
        guard (0...3600).contains(schedule.pauseS), (0...3600).contains(schedule.coolS) else {
            throw Failure("probes.json wants pauses of more than an hour")
        }
    }
}

// MARK: - answers.json

struct Answers: Encodable {
    struct Run: Encodable {
        let stage: Int
        let thermalBefore: String
        let thermalAfter: String
        let lowPower: Bool
        let samplesNs: [String: [UInt64]]

        enum CodingKeys: String, CodingKey {
            case stage
            case thermalBefore = "thermal_before"
            case thermalAfter = "thermal_after"
            case lowPower = "low_power"
            case samplesNs = "samples_ns"
        }
    }

    let schemaVersion = 1
    let probesSha256: String
    let created: String
    let computeUnits: String
    let device: PhoneFacts
    let runs: [Run]

    enum CodingKeys: String, CodingKey {
        case created, device, runs
        case schemaVersion = "schema_version"
        case probesSha256 = "probes_sha256"
        case computeUnits = "compute_units"
    }

    /// Whole or not at all.
    func write(to url: URL) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys]
        try encoder.encode(self).write(to: url, options: .atomic)
    }
}
