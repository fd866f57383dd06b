// What to measure, in which order and how long, and the two JSON files: probes.json in, answers.json out.
// Nothing here knows Core ML or a phone, so that it also compiles and runs on Linux.

import Dispatch
import Foundation

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
    struct Device: Encodable {
        let machine: String
        let arch: String
        let cores: Int
        let memoryGib: Double
        let system: String
        let version: String
        let build: String

        enum CodingKeys: String, CodingKey {
            case machine, arch, cores, system, version, build
            case memoryGib = "memory_gib"
        }
    }

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
    let device: Device
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

// MARK: - Measuring

/// A loaded network with its input: `run` feeds it, runs it and reads its output.
protocol Program {
    func run() throws
}

/// One run over the files of a stage: every file once a round, in a new random order each round.
func measure(
    _ programs: [String: any Program],
    schedule: Probes.Schedule,
    seed: UInt64,
    clock: () -> UInt64 = { DispatchTime.now().uptimeNanoseconds }
) throws -> [String: [UInt64]] {
    var generator = SplitMix64(state: seed)
    var names = programs.keys.sorted()
    var repeats: [String: Int] = [:]
    for name in names {
        repeats[name] = try warmUp(programs[name]!, schedule: schedule, clock: clock)
    }
    var samples: [String: [UInt64]] = [:]
    for _ in 0..<schedule.rounds {
        names.shuffle(using: &generator)
        for name in names {
            let program = programs[name]!
            try program.run()  // the caches were another file's
            for _ in 0..<repeats[name]! {
                let start = clock()
                try program.run()
                samples[name, default: []].append(max(1, clock() - start))
            }
        }
    }
    return samples
}

/// Runs until two runs agree within 5 %; returns how many fill a slice, 2 to 20.
///
/// After ten times `warmupMs` it goes on as it is: what is not steady shows in its spread.
func warmUp(_ program: any Program, schedule: Probes.Schedule, clock: () -> UInt64) throws -> Int {
    let begin = clock()
    var times: [Double] = []
    while true {
        let start = clock()
        try program.run()
        let end = clock()
        times.append(Double(end - start) / 1e6)
        let last = times[times.count - 1]
        let steady = times.count >= 3 && abs(last - times[times.count - 2]) <= 0.05 * last
        let passedMs = Double(end - begin) / 1e6
        if times.count >= 3 && passedMs >= schedule.warmupMs * (steady ? 1 : 10) { break }
    }
    let medianMs = max(times.sorted()[times.count / 2], 1e-6)
    return Int(min(20, max(2, (schedule.sliceMs / medianMs).rounded())))
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators": the same order for the same seed.
struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}

// MARK: - Files

/// sha256 of a package: that of its lines "sha256  relative/path" sorted by path, as the exporter says it.
func packageDigest(_ folder: URL, sha256: (Data) -> String) throws -> String {
    let root = folder.standardizedFileURL.resolvingSymlinksInPath().pathComponents
    guard let items = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: nil) else {
        throw Failure("\(folder.lastPathComponent) cannot be read")
    }
    var digests: [String: String] = [:]
    for case let item as URL in items where !item.hasDirectoryPath {
        let parts = item.standardizedFileURL.resolvingSymlinksInPath().pathComponents
        digests[parts.dropFirst(root.count).joined(separator: "/")] = sha256(try Data(contentsOf: item))
    }
    // Python sorts by code point; Swift's own order of strings is another one beyond ASCII.
    let names = digests.keys.sorted { $0.unicodeScalars.lexicographicallyPrecedes($1.unicodeScalars) }
    return sha256(Data(names.map { "\(digests[$0]!)  \($0)" }.joined(separator: "\n").utf8))
}

/// One line that says what is wrong.
struct Failure: LocalizedError {
    let errorDescription: String?

    init(_ text: String) { errorDescription = text }
}
