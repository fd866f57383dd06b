// Pictures: from the camera, and as pixels.

import CoreGraphics
import Foundation
import MaestroBundle
import SwiftUI
import UIKit

extension Pixels {
    /// Upright, in sRGB; shrunk where a side is above 4096 pixels, which would take hundreds of megabytes.
    init(_ picture: UIImage) throws {
        let longest = max(picture.size.width, picture.size.height)
        let scale = min(picture.scale, 4096 / longest)
        let width = Int((picture.size.width * scale).rounded())
        let height = Int((picture.size.height * scale).rounded())
        guard width > 0, height > 0, let space = CGColorSpace(name: CGColorSpace.sRGB),
            let context = CGContext(
                data: nil, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width, space: space,
                bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue),
            let data = context.data
        else {
            throw Failure("a picture of \(picture.size) points cannot be drawn: give another")
        }
        context.translateBy(x: 0, y: CGFloat(height))  // UIKit counts from the top, Core Graphics from the bottom
        context.scaleBy(x: 1, y: -1)
        UIGraphicsPushContext(context)
        picture.draw(in: CGRect(x: 0, y: 0, width: width, height: height))
        UIGraphicsPopContext()
        let rgbx = UnsafeRawBufferPointer(start: data, count: 4 * width * height)
        let pixels = width * height
        let rgb = [UInt8](unsafeUninitializedCapacity: 3 * pixels) { bytes, count in
            for place in 0..<pixels {
                for channel in 0..<3 { bytes[3 * place + channel] = rgbx[4 * place + channel] }
            }
            count = 3 * pixels
        }
        try self.init(height: height, width: width, channels: 3, bytes: rgb)
    }
}

/// The system's camera, for one photo.
struct Camera: UIViewControllerRepresentable {
    let take: (UIImage) -> Void

    func makeUIViewController(context: Context) -> UIImagePickerController {
        let controller = UIImagePickerController()
        controller.sourceType = .camera
        controller.delegate = context.coordinator
        return controller
    }

    func updateUIViewController(_ controller: UIImagePickerController, context: Context) {}

    func makeCoordinator() -> Coordinator { Coordinator(take: take) }

    final class Coordinator: NSObject, UINavigationControllerDelegate, UIImagePickerControllerDelegate {
        private let take: (UIImage) -> Void

        init(take: @escaping (UIImage) -> Void) { self.take = take }

        func imagePickerController(
            _ picker: UIImagePickerController,
            didFinishPickingMediaWithInfo info: [UIImagePickerController.InfoKey: Any]
        ) {
            if let picture = info[.originalImage] as? UIImage { take(picture) }
            picker.dismiss(animated: true)
        }
    }
}
