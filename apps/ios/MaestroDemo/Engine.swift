import Dispatch
import Foundation
import MaestroBundle

/// Loads and runs the variants of a bundle, one at a time and off the main thread.
actor Engine {
    /// Those that are compiled into this app.
    static var runtimes: Set<String> {
        #if canImport(ExecuTorch)
            ["coreml", "executorch"]
        #else
            ["coreml"]
        #endif
    }

    private static let units = ComputeUnits.all
    private static let pace = Pace(warmupMs: 200, rounds: 10, sliceMs: 50)

    private let bundle: OpenBundle
    private var loaded: (name: String, network: any Network)?

    init(_ bundle: OpenBundle) { self.bundle = bundle }

    /// An image as the bundle's networks are fed it.
    func prepared(_ image: Pixels) -> [Float] { prepare(image, bundle.manifest.input) }

    /// The last run's output and the times of all: feed, run, read.
    func run(
        _ variant: Variant, on image: [Float], runs: Int
    ) async throws -> (output: [Float], samplesMs: [Double]) {
        let network: any Network
        if let loaded, loaded.name == variant.name {
            network = loaded.network
        } else {
            loaded = nil  // its memory is free before another one's is taken
            network = try await load(variant)
            loaded = (variant.name, network)
            _ = try explained(variant) { try network.run(image) }  // the first run is a cold one
        }
        var output: [Float] = []
        var samplesMs: [Double] = []
        for _ in 0..<runs {
            let start = DispatchTime.now().uptimeNanoseconds
            output = try explained(variant) { try network.run(image) }
            samplesMs.append(Double(DispatchTime.now().uptimeNanoseconds - start) / 1e6)
        }
        return (output, samplesMs)
    }

    /// All variants that this app can run, in turn; those that it cannot are named with the reason.
    func benchmark(device: PhoneFacts) async throws -> Benchmark {
        loaded = nil
        var generator = SplitMix64(state: 0)
        let count = bundle.manifest.input.shape.reduce(1, *)
        let image = (0..<count).map { _ in Float.random(in: -1...1, using: &generator) }
        var programs: [String: any Program] = [:]
        var failures: [String: String] = [:]
        for variant in bundle.manifest.variants where Engine.runtimes.contains(variant.runtime) {
            do {
                let program = Fed(try await load(variant), image: image)
                try explained(variant) { try program.run() }
                programs[variant.name] = program
            } catch {
                failures[variant.name] = error.localizedDescription
            }
        }
        let before = phoneState()
        let samples = try measure(programs, pace: Engine.pace, seed: 0)
        return Benchmark(
            manifestSha256: bundle.manifestSha256, computeUnits: Engine.units.rawValue, device: device,
            before: before, after: phoneState(), samplesNs: samples, failures: failures)
    }

    private func load(_ variant: Variant) async throws -> any Network {
        let file = try checkedFile(in: bundle.folder, of: variant, sha256: hexSha256)
        let shape = bundle.manifest.input.shape
        switch variant.runtime {
        case "coreml":
            let package: URL
            do {
                package = try await compiled(file, sha256: variant.sha256)
            } catch {
                throw refused(variant, error)
            }
            return try explained(variant) {
                try CoreMLNetwork(package, function: variant.entry, shape: shape, units: Engine.units)
            }
        #if canImport(ExecuTorch)
            case "executorch":
                return try explained(variant) {
                    try ExecuTorchNetwork(file, method: variant.entry ?? "forward", shape: shape)
                }
        #endif
        default:
            throw Failure("\(variant.name) needs \(variant.runtime), which this app has not: choose another")
        }
    }

    /// A framework's error as one line of ours.
    private func explained<Result>(_ variant: Variant, _ work: () throws -> Result) throws -> Result {
        do { return try work() } catch { throw refused(variant, error) }
    }

    private func refused(_ variant: Variant, _ error: any Error) -> Failure {
        let shape = bundle.manifest.input.shape
        let entry = variant.entry.map { " (\($0))" } ?? ""
        let reason = error.localizedDescription
        return Failure("\(variant.runtime) cannot run \(variant.file)\(entry) on an input of \(shape): \(reason)")
    }
}
