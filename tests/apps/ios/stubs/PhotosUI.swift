import Foundation
import SwiftUI

public struct PhotosPickerItem: Equatable, Sendable {
    public func loadTransferable(type: Data.Type) async throws -> Data? { fatalError() }
}

public struct PHPickerFilter {
    public static var images: PHPickerFilter { fatalError() }
}

public struct PhotosPicker: View {
    public init(_ title: String, selection: Binding<PhotosPickerItem?>, matching: PHPickerFilter?) {}
    public var body: Never { fatalError() }
}
