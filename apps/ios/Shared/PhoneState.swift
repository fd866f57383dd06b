// What both apps ask of an iPhone: its facts, state and folders, Core ML's compute units, sha256.

import CoreML
import CryptoKit
import Foundation
import MaestroBundle

enum ComputeUnits: String, CaseIterable, Identifiable, Sendable {
    case all, cpuOnly, cpuAndGPU, cpuAndNeuralEngine

    var id: String { rawValue }

    var coreML: MLComputeUnits {
        switch self {
        case .all: .all
        case .cpuOnly: .cpuOnly
        case .cpuAndGPU: .cpuAndGPU
        case .cpuAndNeuralEngine: .cpuAndNeuralEngine
        }
    }
}

func phoneState() -> PhoneState {
    let process = ProcessInfo.processInfo
    let thermal =
        switch process.thermalState {
        case .nominal: "nominal"
        case .fair: "fair"
        case .serious: "serious"
        case .critical: "critical"
        @unknown default: "critical"
        }
    return PhoneState(thermal: thermal, lowPower: process.isLowPowerModeEnabled)
}

/// A folder of this app; its documents are what Finder and Files show.
func appFolder(_ kind: FileManager.SearchPathDirectory) -> URL {
    FileManager.default.urls(for: kind, in: .userDomainMask)[0]
}

func hexSha256(_ data: Data) -> String {
    SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
}

/// `system` and `version` are UIDevice's, which only the main thread may ask.
func deviceFacts(system: String, version: String) -> PhoneFacts {
    let process = ProcessInfo.processInfo
    return PhoneFacts(
        machine: systemControl("hw.machine"), arch: "arm64", cores: process.processorCount,
        memoryGib: Double(process.physicalMemory) / 1_073_741_824, system: system, version: version,
        build: systemControl("kern.osversion"))
}

private func systemControl(_ name: String) -> String {
    var size = 0
    sysctlbyname(name, nil, &size, nil, 0)
    var value = [UInt8](repeating: 0, count: max(1, size))
    guard sysctlbyname(name, &value, &size, nil, 0) == 0 else { return "unknown" }
    return String(decoding: value.prefix { $0 != 0 }, as: UTF8.self)
}
