// Which variant runs: before it runs `choose`, while it runs `adapt`, by the rules of apps/README.md.

/// What a choice needs to know of a variant.
public protocol Candidate {
    var name: String { get }
    var runtime: String { get }
    var accuracy: Double { get }
    var measuredMs: MeasuredMs? { get }
}

extension Variant: Candidate {}

/// The variant to run; nil when none is left.
public func choose<V: Candidate>(
    _ variants: [V], budgetMs: Double?, runtimes: Set<String>, choices: [Choice] = [],
    soc: String? = nil, memoryGib: Double? = nil
) -> V? {
    let here = usable(variants, runtimes)
    if let budgetMs { return best(here.filter { $0.p50Ms <= budgetMs }) }
    for choice in choices {
        let fits = choice.soc == nil || choice.soc == soc
        guard fits, choice.memoryGib ?? 0 <= memoryGib ?? 0 else { continue }
        let named = here.first {
            $0.name == choice.variant && (choice.runtime == nil || choice.runtime == $0.runtime)
        }
        if let named { return named }
    }
    return best(here)
}

/// The variant to go on with after runs of `liveMs` (median); `current` is a usable one.
public func adapt<V: Candidate>(
    _ variants: [V], current: V, liveMs: Double, budgetMs: Double?, isHot: Bool, runtimes: Set<String>
) -> V {
    let here = usable(variants, runtimes)
    let limitMs = budgetMs ?? .infinity
    // In this order of operations the current one is expected to take exactly `liveMs`.
    func expectedMs(_ variant: V) -> Double { variant.p50Ms / current.p50Ms * liveMs }
    if isHot || liveMs > limitMs {
        let within = here.filter { expectedMs($0) <= limitMs && !(isHot && expectedMs($0) >= liveMs) }
        return best(within) ?? here.min { expectedMs($0) < expectedMs($1) } ?? current
    }
    guard let budgetMs else { return current }
    return best(here.filter { $0.accuracy > current.accuracy && expectedMs($0) <= 0.9 * budgetMs }) ?? current
}

/// Why `choose` found none, and what to do.
public func refusal<V: Candidate>(_ variants: [V], budgetMs: Double?, runtimes: Set<String>) -> Failure {
    if let budgetMs, let fastest = usable(variants, runtimes).min(by: { $0.p50Ms < $1.p50Ms }) {
        return Failure(
            "a budget of \(short(budgetMs)) ms is below the fastest variant, \(short(fastest.p50Ms)) ms: "
                + "raise the budget")
    }
    let wanted = runtimes.sorted().joined(separator: " or ")
    let have = variants.map { "\($0.name) (\($0.runtime))" }.joined(separator: ", ")
    return Failure(
        "no variant measured with \(wanted.isEmpty ? "a runtime that is here" : wanted): "
            + "the bundle has \(have.isEmpty ? "nothing" : have)")
}

private func usable<V: Candidate>(_ variants: [V], _ runtimes: Set<String>) -> [V] {
    variants.filter { runtimes.contains($0.runtime) && $0.measuredMs != nil }
}

/// The highest accuracy; of equal ones the lowest p50; of equal ones the first listed, as `min` keeps the first.
private func best<V: Candidate>(_ variants: [V]) -> V? {
    variants.min { $0.accuracy == $1.accuracy ? $0.p50Ms < $1.p50Ms : $0.accuracy > $1.accuracy }
}

extension Candidate {
    fileprivate var p50Ms: Double { measuredMs?.p50 ?? .infinity }
}

private func short(_ number: Double) -> String {
    String((number * 1000).rounded() / 1000)
}
