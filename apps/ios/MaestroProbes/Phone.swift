// Core ML packages with random inputs, and the runs over them.

import CoreML
import Foundation
import MaestroBundle

/// One compiled package, loaded and fed with random numbers (ids 0 and 1 where it takes integers).
final class CoreMLProgram: Program {
    private let model: MLModel
    private let input: MLDictionaryFeatureProvider
    private let output: String

    init(_ compiled: Compiled, units: MLComputeUnits) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        model = try MLModel(contentsOf: compiled.url, configuration: configuration)
        let inputs = model.modelDescription.inputDescriptionsByName
        guard inputs.count == 1, let (name, description) = inputs.first,
            let wanted = description.multiArrayConstraint, wanted.shape.map(\.intValue) == compiled.inputShape,
            let output = model.modelDescription.outputDescriptionsByName.keys.first
        else {
            throw Failure("\(compiled.url.lastPathComponent) takes another input than \(compiled.inputShape)")
        }
        let array = try MLMultiArray(shape: wanted.shape, dataType: wanted.dataType)
        var generator = SplitMix64(state: 0)
        for index in 0..<array.count {
            array[index] =
                wanted.dataType == .int32
                ? NSNumber(value: Int32(index % 2)) : NSNumber(value: Float.random(in: -1...1, using: &generator))
        }
        self.output = output
        input = try MLDictionaryFeatureProvider(dictionary: [name: MLFeatureValue(multiArray: array)])
    }

    func run() throws {
        try autoreleasepool {
            let answer = try model.prediction(from: input)
            guard answer.featureValue(for: output)?.multiArrayValue != nil else {
                throw Failure("a network gave no output")
            }
        }
    }
}

/// Hears how far the work is (0 to 1) and what it does.
typealias Say = @Sendable (Double, String) -> Void

/// Measures a folder of probes with these compute units.
func answers(folder: URL, units: ComputeUnits, device: PhoneFacts, say: Say) async throws -> Answers {
    let data = try Data(contentsOf: folder.appendingPathComponent("probes.json"))
    let probes = try Probes(probes: data)
    let work = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: work, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: work) }
    let compiled = try await compile(probes.files, from: folder, into: work, say: say)
    let schedule = probes.schedule
    let total = schedule.stages.count * schedule.runs
    var runs: [Answers.Run] = []
    for (stage, names) in schedule.stages.enumerated() {
        for run in 0..<schedule.runs {
            say(Double(runs.count) / Double(total), "\(names.count) files, run \(runs.count + 1) of \(total)")
            try await rest(schedule)
            let seed = UInt64(bitPattern: Int64(schedule.seed &+ run))
            let load = { try CoreMLProgram(compiled[$0]!, units: units.coreML) }
            runs.append(try measured(stage: stage, names: names, schedule: schedule, seed: seed, load: load))
            try Task.checkCancellation()
        }
    }
    return Answers(
        probesSha256: hexSha256(data), created: ISO8601DateFormatter().string(from: Date()),
        computeUnits: units.rawValue, device: device, runs: runs)
}

struct Compiled {
    let url: URL
    let inputShape: [Int]
}

/// Every package as this phone's Core ML compiles it, once its sha256 has shown that it came over whole.
private func compile(
    _ files: [Probes.File], from folder: URL, into work: URL, say: Say
) async throws -> [String: Compiled] {
    var compiled: [String: Compiled] = [:]
    for file in files {
        say(Double(compiled.count) / Double(files.count), "compiling \(file.file)")
        try Task.checkCancellation()
        let package = folder.appendingPathComponent(file.file)
        guard try packageDigest(package, sha256: hexSha256).sha256 == file.sha256 else {
            throw Failure("\(file.file) is not the file that was exported: carry the whole folder over again")
        }
        let kept = work.appendingPathComponent("\(file.file).mlmodelc")
        try FileManager.default.moveItem(at: try await MLModel.compileModel(at: package), to: kept)
        compiled[file.file] = Compiled(url: kept, inputShape: file.inputShape)
    }
    return compiled
}

/// One run, with the phone's state before and after it; the programs are gone when it returns.
private func measured(
    stage: Int, names: [String], schedule: Probes.Schedule, seed: UInt64, load: (String) throws -> any Program
) throws -> Answers.Run {
    let before = phoneState()
    let samples = try autoreleasepool {
        var programs: [String: any Program] = [:]
        for name in names { programs[name] = try load(name) }
        return try measure(programs, pace: schedule.pace, seed: seed)
    }
    let after = phoneState()
    return Answers.Run(
        stage: stage, thermalBefore: before.thermal, thermalAfter: after.thermal,
        lowPower: before.lowPower || after.lowPower, samplesNs: samples)
}

/// The pause before a run; a hot phone gets longer, as it would be measured at reduced clocks.
private func rest(_ schedule: Probes.Schedule) async throws {
    try await Task.sleep(nanoseconds: UInt64(schedule.pauseS * 1e9))
    var waitedS = 0.0
    while phoneState().isHot, waitedS < schedule.coolS {
        try await Task.sleep(nanoseconds: 2_000_000_000)
        waitedS += 2
    }
}
