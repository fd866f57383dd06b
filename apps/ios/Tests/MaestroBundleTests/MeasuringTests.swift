import Foundation
import Testing

@testable import MaestroBundle

/// A program on a clock of its own: every run takes its time, and is counted.
private final class Clocked: Program {
    static nonisolated(unsafe) var nowNs: UInt64 = 0
    private let takesNs: UInt64
    private(set) var runs = 0

    init(takesNs: UInt64) { self.takesNs = takesNs }

    func run() {
        runs += 1
        Clocked.nowNs += takesNs
    }
}

@Test func aSliceIsFilledWithRunsAndEveryRoundHasAsMany() throws {
    let (fast, slow) = (Clocked(takesNs: 1_000_000), Clocked(takesNs: 30_000_000))
    let pace = Pace(warmupMs: 5, rounds: 3, sliceMs: 10)

    let samples = try measure(["fast": fast, "slow": slow], pace: pace, seed: 0, clock: { Clocked.nowNs })

    #expect(samples["fast"] == Array(repeating: 1_000_000, count: 3 * 10))
    #expect(samples["slow"] == Array(repeating: 30_000_000, count: 3 * 2))  // two at least
    #expect(fast.runs == 5 + 3 * 11 && slow.runs == 3 + 3 * 3)  // warm-up, and one untimed run a visit
}

@Test func theGeneratorGivesTheSequenceOfItsPaper() {
    var generator = SplitMix64(state: 1_234_567)

    let found = (0..<3).map { _ in generator.next() }

    // Of the reference implementation, by Sebastiano Vigna, from this seed.
    #expect(found == [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423])
}

@Test func onlyTheLastRunsCount() {
    var recent = RecentRuns(most: 3)
    #expect(recent.times == nil)

    recent.add([100, 1])
    recent.add([2, 3])

    #expect(recent.count == 3)
    #expect(recent.times == MeasuredMs(p50: 2, p90: 2.8))
}

@Test func theLikeliestComeFirstAndEqualOnesInOrder() throws {
    let found = try likeliest([0, 1000, 1000, -1000], labels: ["a", "b", "c", "d"], most: 3)

    #expect(found.map(\.label) == ["b", "c", "a"])
    #expect(found.map(\.probability) == [0.5, 0.5, 0])
    #expect(throws: Failure.self) { try likeliest([0], labels: ["a", "b"]) }
    #expect(throws: Failure.self) { try likeliest([0, .nan], labels: ["a", "b"]) }
}

@Test func aBenchmarkBelongsToItsManifestAndKeepsOtherTimesOut() throws {
    let url = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).json")
    defer { try? FileManager.default.removeItem(at: url) }
    let facts = PhoneFacts(
        machine: "iPhone17,1", arch: "arm64", cores: 6, memoryGib: 7.5, system: "iOS", version: "18.6",
        build: "22G86")
    let state = PhoneState(thermal: "nominal", lowPower: false)
    let text = #"{"name": "dense", "runtime": "coreml", "file": "m", "sha256": "0", "size_bytes": 1, "#
        + #" "accuracy": 0.9, "measured_ms": {"p50": 9, "p90": 9}}"#
    let variant = try JSONDecoder().decode(Variant.self, from: Data(text.utf8))

    try Benchmark(
        manifestSha256: "one", computeUnits: "all", device: facts, before: state, after: state,
        samplesNs: ["dense": [3_000_000, 1_000_000, 2_000_000]], failures: [:]
    ).write(to: url)

    let found = try #require(Benchmark(at: url, manifestSha256: "one"))
    #expect(found.timed([variant]).map(\.measuredMs) == [MeasuredMs(p50: 2, p90: 2.8)])
    #expect(Benchmark(at: url, manifestSha256: "another") == nil)
}
