// The cases of apps/testdata/selection.json, which every app passes.

import Foundation
import Testing

@testable import MaestroBundle

struct Row: Candidate, Decodable, Sendable {
    let name: String
    let runtime: String
    let accuracy: Double
    let measuredMs: MeasuredMs?

    enum CodingKeys: String, CodingKey {
        case name, runtime, accuracy
        case measuredMs = "measured_ms"
    }
}

struct ChooseCase: Decodable, Sendable, CustomTestStringConvertible {
    struct Device: Decodable, Sendable {
        let soc: String?
        let memoryGib: Double?

        enum CodingKeys: String, CodingKey {
            case soc
            case memoryGib = "memory_gib"
        }
    }

    let name: String
    let variants: [Row]
    let choices: [Choice]
    let device: Device
    let runtimes: Set<String>
    let budgetMs: Double?
    let chosen: String?

    var testDescription: String { name }

    enum CodingKeys: String, CodingKey {
        case variants, choices, device, runtimes, chosen
        case name = "case"
        case budgetMs = "budget_ms"
    }
}

struct AdaptCase: Decodable, Sendable, CustomTestStringConvertible {
    let name: String
    let variants: [Row]
    let runtimes: Set<String>
    let current: String
    let liveMs: Double
    let budgetMs: Double?
    let hot: Bool
    let next: String

    var testDescription: String { name }

    enum CodingKeys: String, CodingKey {
        case variants, runtimes, current, hot, next
        case name = "case"
        case liveMs = "live_ms"
        case budgetMs = "budget_ms"
    }
}

private struct Cases: Decodable {
    let choose: [ChooseCase]
    let adapt: [AdaptCase]

    static func load() throws -> Cases {
        let apps = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(path: "../../..")
        let data = try Data(contentsOf: apps.appending(path: "testdata/selection.json"))
        return try JSONDecoder().decode(Cases.self, from: data)
    }
}

@Test(arguments: try Cases.load().choose)
func choosesAsEveryAppDoes(_ given: ChooseCase) {
    let chosen = choose(
        given.variants, budgetMs: given.budgetMs, runtimes: given.runtimes, choices: given.choices,
        soc: given.device.soc, memoryGib: given.device.memoryGib)

    #expect(chosen?.name == given.chosen)
}

@Test(arguments: try Cases.load().adapt)
func adaptsAsEveryAppDoes(_ given: AdaptCase) throws {
    let current = try #require(given.variants.first { $0.name == given.current })

    let next = adapt(
        given.variants, current: current, liveMs: given.liveMs, budgetMs: given.budgetMs, isHot: given.hot,
        runtimes: given.runtimes)

    #expect(next.name == given.next)
}

@Test func aRefusalNamesTheFastestTimeThatIsHere() {
    let variants = [
        Row(name: "fast", runtime: "coreml", accuracy: 0.9, measuredMs: MeasuredMs(p50: 0.1, p90: 0.2)),
        Row(name: "slow", runtime: "executorch", accuracy: 0.9, measuredMs: MeasuredMs(p50: 0.5, p90: 0.6)),
    ]

    let below = refusal(variants, budgetMs: 0.2, runtimes: ["executorch"])
    let other = refusal(variants, budgetMs: 0.2, runtimes: ["litert"])

    #expect(below == Failure("a budget of 0.2 ms is below the fastest variant, 0.5 ms: raise the budget"))
    #expect(
        other == Failure("no variant measured with litert: the bundle has fast (coreml), slow (executorch)"))
}
