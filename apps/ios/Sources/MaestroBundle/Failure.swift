import Foundation

/// One line: what happened and what to do.
public struct Failure: LocalizedError, Equatable {
    public let errorDescription: String?

    public init(_ text: String) { errorDescription = text }
}
