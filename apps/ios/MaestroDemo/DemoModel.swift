import Foundation
import MaestroBundle
import Observation
import UIKit

/// What is on the screen, and the loop behind it: run, tell the times, go on with what `adapt` says.
@MainActor @Observable
final class DemoModel {
    private(set) var picture: UIImage?
    private(set) var variants: [Variant] = []
    private(set) var current: Variant?
    private(set) var likely: [Likely] = []
    private(set) var times: MeasuredMs?
    /// Where the known times of the variants come from.
    private(set) var measuredOn = ""
    private(set) var state = phoneState()
    private(set) var isMeasuring = false
    private(set) var message = ""

    /// nil: the manifest's choices decide.
    var budgetMs: Double? {
        didSet { if budgetMs != oldValue { chooseAgain() } }
    }

    private let facts = deviceFacts(system: UIDevice.current.systemName, version: UIDevice.current.systemVersion)
    private var bundle: OpenBundle?
    private var engine: Engine?
    private var image: [Float]?
    private var recent = RecentRuns()

    /// A switch is thought about after this many runs of a variant.
    private static let settledRuns = 30

    private static var benchmarkFile: URL { appFolder(.documentDirectory).appending(path: "benchmark.json") }

    /// The times that a budget can lie between: those of the fastest and of the slowest usable variant.
    var budgetRangeMs: ClosedRange<Double>? {
        let p50s = variants.filter { Engine.runtimes.contains($0.runtime) }.compactMap { $0.measuredMs?.p50 }
        guard let fastest = p50s.min(), let slowest = p50s.max() else { return nil }
        return (0.5 * fastest)...(1.5 * slowest)
    }

    /// The bundle in Documents/model, carried over by Finder, goes before the one built into the app.
    func open() {
        let carried = appFolder(.documentDirectory).appending(path: "model")
        let isCarried = FileManager.default.fileExists(atPath: carried.path)
        do {
            let folder = isCarried ? carried : Bundle.main.bundleURL.appending(path: "model")
            let opened = try OpenBundle(at: folder, sha256: hexSha256)
            let earlier = Benchmark(at: DemoModel.benchmarkFile, manifestSha256: opened.manifestSha256)
            variants = earlier?.timed(opened.manifest.variants) ?? opened.manifest.variants
            measuredOn = earlier?.device.machine ?? opened.manifest.device.name
            engine = Engine(opened)
            bundle = opened
            chooseAgain()
        } catch {
            message = error.localizedDescription
        }
    }

    func show(_ picture: UIImage) async {
        guard let engine else { return }
        do {
            image = await engine.prepared(try Pixels(picture))
            self.picture = picture
            likely = []
        } catch {
            message = error.localizedDescription
        }
    }

    /// Runs what is chosen on the picture again and again, for as long as the screen is there.
    func keepRunning() async {
        while !Task.isCancelled {
            if let engine, let current, let image, !isMeasuring { await runBatch(engine, current, image) }
            try? await Task.sleep(for: .milliseconds(100))
        }
    }

    private func runBatch(_ engine: Engine, _ variant: Variant, _ image: [Float]) async {
        do {
            let batch = try await engine.run(variant, on: image, runs: 10)
            guard variant.name == current?.name, let bundle, !isMeasuring else { return }  // chosen anew meanwhile
            likely = try likeliest(batch.output, labels: bundle.manifest.labels)
            recent.add(batch.samplesMs)
            times = recent.times
            state = phoneState()
            guard recent.count >= DemoModel.settledRuns, let liveMs = times?.p50 else { return }
            let next = adapt(
                variants, current: variant, liveMs: liveMs, budgetMs: budgetMs, isHot: state.isHot,
                runtimes: Engine.runtimes)
            if next.name != variant.name { use(next) }
        } catch where variant.name == current?.name {
            use(nil)  // until it is chosen anew
            message = error.localizedDescription
        } catch {}  // of a variant that is no longer wanted
    }

    /// Times every variant on this phone and keeps them: from then on they stand in for the manifest's.
    func measureHere() async -> Bool {
        guard let engine, let bundle, !isMeasuring else { return false }
        guard !phoneState().lowPower else {
            message = "End low-power mode first: it reduces the clocks."
            return false
        }
        isMeasuring = true
        UIApplication.shared.isIdleTimerDisabled = true
        defer {
            isMeasuring = false
            UIApplication.shared.isIdleTimerDisabled = false
        }
        do {
            let found = try await engine.benchmark(device: facts)
            try found.write(to: DemoModel.benchmarkFile)
            variants = found.timed(bundle.manifest.variants)
            measuredOn = facts.machine
            chooseAgain()
            let failed = found.failures.sorted { $0.key < $1.key }.map(\.value)
            message = (["Measured: benchmark.json lies in Files."] + failed).joined(separator: "\n")
            return true
        } catch {
            message = error.localizedDescription
            return false
        }
    }

    private func chooseAgain() {
        guard let bundle else { return }
        let found = choose(
            variants, budgetMs: budgetMs, runtimes: Engine.runtimes, choices: bundle.manifest.choices,
            soc: facts.machine, memoryGib: facts.memoryGib)
        use(found)
        message =
            found == nil
            ? refusal(variants, budgetMs: budgetMs, runtimes: Engine.runtimes).localizedDescription : ""
    }

    private func use(_ variant: Variant?) {
        current = variant
        recent = RecentRuns()
        times = nil
    }
}
