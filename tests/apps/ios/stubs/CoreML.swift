@_exported import AppleFoundation
import Foundation

public enum MLComputeUnits { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
public enum MLMultiArrayDataType { case double, float32, float16, int32 }

public final class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?
    public init() {}
}

public final class MLMultiArray {
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {}
    public var count: Int { fatalError() }
    public subscript(index: Int) -> NSNumber {
        get { fatalError() }
        set {}
    }
}

public protocol MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public init<S: Sequence>(scalars: S, shape: [Int]) where S.Element == Scalar {}
    public init(converting multiArray: MLMultiArray) {}
    public var scalars: [Scalar] { fatalError() }
}

public final class MLFeatureValue {
    public init(multiArray: MLMultiArray) {}
    public init<Scalar: MLShapedArrayScalar>(shapedArray: MLShapedArray<Scalar>) {}
    public var multiArrayValue: MLMultiArray? { fatalError() }
}

public protocol MLFeatureProvider {
    func featureValue(for name: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    public func featureValue(for name: String) -> MLFeatureValue? { fatalError() }
}

public final class MLMultiArrayConstraint {
    public var shape: [NSNumber] { fatalError() }
    public var dataType: MLMultiArrayDataType { fatalError() }
}

public final class MLFeatureDescription {
    public var multiArrayConstraint: MLMultiArrayConstraint? { fatalError() }
}

public final class MLModelDescription {
    public var inputDescriptionsByName: [String: MLFeatureDescription] { fatalError() }
    public var outputDescriptionsByName: [String: MLFeatureDescription] { fatalError() }
}

public final class MLModel {
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {}
    public static func compileModel(at url: URL) async throws -> URL { fatalError() }
    public var modelDescription: MLModelDescription { fatalError() }
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { fatalError() }
}
