// The screen: choose compute units and a folder of probes, wait, share answers.json.

import Foundation
import SwiftUI
import UIKit
import UniformTypeIdentifiers

@main
struct ProbesApp: App {
    var body: some Scene {
        WindowGroup { ProbesView() }
    }
}

struct ProbesView: View {
    @Environment(\.scenePhase) private var scenePhase
    @State private var units = ComputeUnits.all
    @State private var isChoosing = false
    @State private var measuring: Task<Void, Never>?
    @State private var progress = 0.0
    @State private var status = "Choose the folder that holds probes.json."
    @State private var written: URL?

    var body: some View {
        VStack(spacing: 24) {
            Picker("Compute units", selection: $units) {
                ForEach(ComputeUnits.allCases) { Text($0.rawValue).tag($0) }
            }
            .disabled(measuring != nil)
            Button("Choose folder and measure") { isChoosing = true }
                .disabled(measuring != nil)
            ProgressView(value: progress)
            Text(status)
            if let written { ShareLink("Share answers.json", item: written) }
        }
        .padding()
        .fileImporter(isPresented: $isChoosing, allowedContentTypes: [.folder]) { result in
            switch result {
            case .success(let folder): start(folder)
            case .failure(let error): status = error.localizedDescription
            }
        }
        .onChange(of: scenePhase) {
            // Another app in front gets the fast cores: what was measured meanwhile is worth nothing.
            if scenePhase == .background { measuring?.cancel() }
        }
    }

    private func start(_ folder: URL) {
        if ProcessInfo.processInfo.isLowPowerModeEnabled {
            status = "End low-power mode first: it reduces the clocks."
            return
        }
        written = nil
        UIApplication.shared.isIdleTimerDisabled = true
        let phone = deviceFacts(system: UIDevice.current.systemName, version: UIDevice.current.systemVersion)
        let chosen = units
        measuring = Task {
            let isScoped = folder.startAccessingSecurityScopedResource()
            let end: (share: Double, what: String)
            do {
                let work = Task.detached(priority: .userInitiated) {
                    try await answers(folder: folder, units: chosen, device: phone) { share, what in
                        Task { @MainActor in if measuring != nil { show(share, what) } }
                    }
                }
                let found = try await withTaskCancellationHandler {
                    try await work.value
                } onCancel: {
                    work.cancel()
                }
                let url = appFolder(.documentDirectory).appendingPathComponent("answers.json")
                try found.write(to: url)
                written = url
                end = (1, "Measured. Send answers.json to the computer that made the probes.")
            } catch is CancellationError {
                end = (0, "Stopped, as the app left the screen. Measure again and leave it in front.")
            } catch {
                end = (0, error.localizedDescription)
            }
            if isScoped { folder.stopAccessingSecurityScopedResource() }
            UIApplication.shared.isIdleTimerDisabled = false
            measuring = nil  // before the last word, which no late progress replaces
            show(end.share, end.what)
        }
    }

    private func show(_ share: Double, _ what: String) {
        progress = share
        status = what
    }
}
