#if canImport(ExecuTorch)

import ExecuTorch
import Foundation
import MaestroBundle

/// One method of an ExecuTorch program.
final class ExecuTorchNetwork: Network {
    private let module: Module
    private let method: String
    private let shape: [Int]

    init(_ file: URL, method: String, shape: [Int]) throws {
        module = Module(filePath: file.path)
        try module.load(method)
        self.method = method
        self.shape = shape
    }

    func run(_ image: [Float]) throws -> [Float] {
        let output: Tensor<Float> = try module.execute(method, Tensor<Float>(image, shape: shape))
        return output.scalars()
    }
}

#endif
