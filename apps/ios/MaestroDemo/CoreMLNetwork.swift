import CoreML
import Foundation
import MaestroBundle

/// One function of a compiled Core ML package.
final class CoreMLNetwork: Network {
    private let model: MLModel
    private let input: String
    private let output: String
    private let shape: [Int]

    /// `function` is one of a package that several variants share; nil is the package's only one.
    init(_ compiled: URL, function: String?, shape: [Int], units: ComputeUnits) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units.coreML
        configuration.functionName = function
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        let inputs = model.modelDescription.inputDescriptionsByName
        guard inputs.count == 1, let (name, description) = inputs.first,
            let wanted = description.multiArrayConstraint, wanted.dataType == .float32,
            wanted.shape.map(\.intValue) == shape,
            let output = model.modelDescription.outputDescriptionsByName.keys.first
        else {
            throw Failure("the package takes another input than \(shape) in float32: make the bundle again")
        }
        self.input = name
        self.output = output
        self.shape = shape
    }

    func run(_ image: [Float]) throws -> [Float] {
        try autoreleasepool {
            let array = MLShapedArray<Float>(scalars: image, shape: shape)
            let fed = try MLDictionaryFeatureProvider(dictionary: [input: MLFeatureValue(shapedArray: array)])
            guard let answer = try model.prediction(from: fed).featureValue(for: output)?.multiArrayValue else {
                throw Failure("the network gave no output: make the bundle again")
            }
            return Array(MLShapedArray<Float>(converting: answer).scalars)
        }
    }
}

/// The package as this phone's Core ML compiles it: once, then kept under its sha256.
func compiled(_ package: URL, sha256: String) async throws -> URL {
    let folder = appFolder(.cachesDirectory).appending(path: "compiled")
    let kept = folder.appending(path: "\(sha256).mlmodelc")
    if !FileManager.default.fileExists(atPath: kept.path) {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try FileManager.default.moveItem(at: try await MLModel.compileModel(at: package), to: kept)
    }
    return kept
}
