import Foundation
import MaestroBundle
import PhotosUI
import SwiftUI
import UIKit

struct DemoView: View {
    @State private var model = DemoModel()
    @State private var picked: PhotosPickerItem?
    @State private var isTaking = false

    var body: some View {
        Form {
            Section("Picture") {
                if let picture = model.picture { Image(uiImage: picture).resizable().scaledToFit() }
                PhotosPicker("Choose a photo", selection: $picked, matching: .images)
                Button("Take a photo") { isTaking = true }
                    .disabled(!UIImagePickerController.isSourceTypeAvailable(.camera))
                ForEach(model.likely) { LabeledContent($0.label, value: percent($0.probability)) }
            }
            Section("Variant") { variantRows }
            Section("Budget") { budgetRows }
            Section {
                Button("Measure all variants on this iPhone") { Task { _ = await model.measureHere() } }
                    .disabled(model.isMeasuring)
                Text(model.isMeasuring ? "Measuring: leave the app in front." : model.message)
            }
        }
        .task {
            model.open()
            if isHeadless { await measureAndExit() }
            await model.keepRunning()
        }
        .onChange(of: picked) { Task { await load() } }
        .fullScreenCover(isPresented: $isTaking) {
            Camera { picture in Task { await model.show(picture) } }
        }
    }

    @ViewBuilder private var variantRows: some View {
        if let current = model.current {
            LabeledContent("Runs", value: "\(current.name) (\(current.runtime))")
            LabeledContent("Accuracy", value: percent(current.accuracy))
            LabeledContent("On \(model.measuredOn) p50, p90", value: milliseconds(current.measuredMs))
            LabeledContent("Now p50, p90", value: milliseconds(model.times))
        }
        LabeledContent("Thermal state", value: model.state.thermal)
    }

    @ViewBuilder private var budgetRows: some View {
        if let range = model.budgetRangeMs {
            let budget = Binding(get: { model.budgetMs ?? range.upperBound }, set: { model.budgetMs = $0 })
            let isBounded = Binding(
                get: { model.budgetMs != nil }, set: { model.budgetMs = $0 ? range.upperBound : nil })
            Toggle("Keep a budget", isOn: isBounded)
            Slider(value: budget, in: range).disabled(model.budgetMs == nil)
            if let budgetMs = model.budgetMs { Text(String(format: "%.2f ms", budgetMs)) }
        }
    }

    private func measureAndExit() async -> Never {
        let isMeasured = await model.measureHere()
        print(model.message)
        exit(isMeasured ? 0 : 1)
    }

    private func load() async {
        guard let data = try? await picked?.loadTransferable(type: Data.self), let picture = UIImage(data: data)
        else { return }
        await model.show(picture)
    }
}

/// Started for the benchmark alone, as by `devicectl device process launch … --benchmark`.
private var isHeadless: Bool { ProcessInfo.processInfo.arguments.contains("--benchmark") }

private func percent(_ share: Double) -> String { String(format: "%.1f %%", 100 * share) }

private func milliseconds(_ times: MeasuredMs?) -> String {
    times.map { String(format: "%.2f ms, %.2f ms", $0.p50, $0.p90) } ?? "—"
}
