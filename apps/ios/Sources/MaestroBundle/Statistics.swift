import Foundation

/// The quantile of samples, with numpy's linear interpolation between the two that are next to it.
///
/// There must be a sample, and `share` lies between 0 and 1.
public func quantile(_ samples: [Double], _ share: Double) -> Double {
    let sorted = samples.sorted()
    let place: Double = share * Double(sorted.count - 1)
    let below = Int(place)
    let above = min(below + 1, sorted.count - 1)
    let step: Double = sorted[above] - sorted[below]
    return sorted[below] + (place - Double(below)) * step
}

/// The times of the last runs of one variant: what is on the screen, and what `adapt` is told.
public struct RecentRuns: Sendable {
    private let most: Int
    private var samplesMs: [Double] = []

    public init(most: Int = 50) { self.most = most }

    public mutating func add(_ newMs: [Double]) {
        samplesMs = Array((samplesMs + newMs).suffix(most))
    }

    public var count: Int { samplesMs.count }
    /// nil before the first run.
    public var times: MeasuredMs? {
        samplesMs.isEmpty ? nil : MeasuredMs(p50: quantile(samplesMs, 0.5), p90: quantile(samplesMs, 0.9))
    }
}

public struct Likely: Sendable, Equatable, Identifiable {
    public let label: String
    public let probability: Double

    public var id: String { label }
}

/// The likeliest labels by the softmax of a network's output, of equal ones the first.
public func likeliest(_ logits: [Float], labels: [String], most: Int = 5) throws -> [Likely] {
    guard logits.count == labels.count, let top = logits.max(), logits.allSatisfy(\.isFinite) else {
        throw Failure("the network gave \(logits.prefix(20)) for \(labels.count) labels: make the bundle again")
    }
    let odds = logits.map { (logit: Float) -> Double in exp(Double(logit) - Double(top)) }
    let total: Double = odds.reduce(0, +)
    let order = odds.indices.sorted { odds[$0] == odds[$1] ? $0 < $1 : odds[$0] > odds[$1] }
    return order.prefix(most).map { Likely(label: labels[$0], probability: odds[$0] / total) }
}
