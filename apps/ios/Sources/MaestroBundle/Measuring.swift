// How long networks take on this phone, and the state in which it was.

import Dispatch
import Foundation

/// A loaded network with its input: `run` feeds it, runs it and reads its output.
public protocol Program {
    func run() throws
}

/// A loaded network: an image as `prepare` makes it in, logits out.
public protocol Network {
    func run(_ image: [Float]) throws -> [Float]
}

/// A network with the image that it is fed.
public struct Fed: Program {
    private let network: any Network
    private let image: [Float]

    public init(_ network: any Network, image: [Float]) {
        self.network = network
        self.image = image
    }

    public func run() throws { _ = try network.run(image) }
}

/// How long and how often every network of a run is run.
public struct Pace: Sendable {
    public let warmupMs: Double
    public let rounds: Int
    public let sliceMs: Double

    public init(warmupMs: Double, rounds: Int, sliceMs: Double) {
        self.warmupMs = warmupMs
        self.rounds = rounds
        self.sliceMs = sliceMs
    }
}

/// Samples in ns of each program: every one once a round, in a new random order each round.
public func measure(
    _ programs: [String: any Program], pace: Pace, seed: UInt64,
    clock: () -> UInt64 = { DispatchTime.now().uptimeNanoseconds }
) throws -> [String: [UInt64]] {
    var generator = SplitMix64(state: seed)
    var names = programs.keys.sorted()
    var repeats: [String: Int] = [:]
    for name in names {
        repeats[name] = try warmUp(programs[name]!, pace: pace, clock: clock)
    }
    var samples: [String: [UInt64]] = [:]
    for _ in 0..<pace.rounds {
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
func warmUp(_ program: any Program, pace: Pace, clock: () -> UInt64) throws -> Int {
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
        if times.count >= 3 && passedMs >= pace.warmupMs * (steady ? 1 : 10) { break }
    }
    let medianMs = max(times.sorted()[times.count / 2], 1e-6)
    return Int(min(20, max(2, (pace.sliceMs / medianMs).rounded())))
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators": the same order for the same seed.
public struct SplitMix64: RandomNumberGenerator {
    private var state: UInt64

    public init(state: UInt64) { self.state = state }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}

/// What a phone tells of itself.
public struct PhoneFacts: Codable, Sendable {
    /// hw.machine, such as iPhone17,1, which names the chip.
    public let machine: String
    public let arch: String
    public let cores: Int
    public let memoryGib: Double
    public let system: String
    public let version: String
    public let build: String

    public init(
        machine: String, arch: String, cores: Int, memoryGib: Double, system: String, version: String,
        build: String
    ) {
        self.machine = machine
        self.arch = arch
        self.cores = cores
        self.memoryGib = memoryGib
        self.system = system
        self.version = version
        self.build = build
    }

    enum CodingKeys: String, CodingKey {
        case machine, arch, cores, system, version, build
        case memoryGib = "memory_gib"
    }
}

/// What decides whether a run's times are worth anything: thermal state and low-power mode.
public struct PhoneState: Sendable {
    /// nominal, fair, serious or critical: in the last two iOS reduces the clocks.
    public let thermal: String
    public let lowPower: Bool

    public var isHot: Bool { ["serious", "critical"].contains(thermal) }

    public init(thermal: String, lowPower: Bool) {
        self.thermal = thermal
        self.lowPower = lowPower
    }
}
