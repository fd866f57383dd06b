// A method of a .pte file, `forward` by default, with an event trace where that is asked for.
#pragma once

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "npy.h"
#include "text.h"

using executorch::etdump::ETDumpGen;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Program;

namespace executorch::extension::threadpool {
// The wheel exports the pool but not its header, which also needs one of pthreadpool's.
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

inline std::string meaning(Error error, bool running) {
  switch (error) {
    case Error::NotSupported:
      return running ? "an input has another shape than the model was exported for" : "it needs another ExecuTorch";
    case Error::InvalidArgument:
      if (running) return "an input has another type, or there are more or fewer inputs than exported";
      [[fallthrough]];  // an empty file
    case Error::InvalidProgram:
      return "the file is truncated or not an ExecuTorch program";
    case Error::OperatorMissing:
      return "it has an operator that this runner has not";
    case Error::NotFound:
      return "a backend, a method or weights that it needs are missing";
    case Error::MemoryAllocationFailed:
      return "it needs more memory than there is";
    case Error::AccessFailed:
      return "it cannot be read";
    default:
      return executorch::runtime::to_string(error);
  }
}

class Network {
 public:
  // "#entry" behind a path names another method; the names of files are the host's, without a "#".
  Network(const std::string& path, bool traced) : path_(path) {
    const size_t mark = path.find('#', path.rfind('/') + 1);
    if (mark != std::string::npos) method_ = path.substr(mark + 1);
    auto tracer = traced ? std::make_unique<ETDumpGen>() : nullptr;
    tracer_ = tracer.get();
    module_ = std::make_unique<Module>(path.substr(0, mark), Module::LoadMode::Mmap, std::move(tracer));
    check(module_->load(Program::Verification::InternalConsistency), "loading");
    check(module_->load_method(method_), "loading " + method_);
    const auto meta = module_->method_meta(method_);
    check(meta.error(), "reading " + method_);
    const auto input = meta->input_tensor_meta(0);
    check(input.error(), "reading its input");
    type = input->scalar_type();
    shape.assign(input->sizes().begin(), input->sizes().end());
  }

  void feed(Array sample) {
    input_ = std::move(sample);
    tensor_ = executorch::extension::make_tensor_ptr(input_.shape, input_.bytes.data(), input_.type);
  }

  // As an app does: the input is handed over, the network runs, the output is read.
  const Array& run() {
    const auto result = module_->execute(method_, EValue(tensor_));
    check(result.error(), "running");
    if (result->empty() || !result->at(0).isTensor()) throw std::runtime_error(base_name(path_) + ": gives no tensor");
    const auto tensor = result->at(0).toTensor();
    output_.type = tensor.scalar_type();
    output_.shape.assign(tensor.sizes().begin(), tensor.sizes().end());
    const auto* data = static_cast<const uint8_t*>(tensor.const_data_ptr());
    output_.bytes.assign(data, data + tensor.nbytes());
    return output_;
  }

  void write_trace(const std::string& path) {
    const auto dump = tracer_->get_etdump_data();
    const std::unique_ptr<void, void (*)(void*)> owner(dump.buf, std::free);
    if (dump.buf == nullptr || dump.size == 0) throw std::runtime_error(base_name(path_) + ": gave no event trace");
    write_file(path, dump.buf, dump.size);
  }

  ScalarType type = ScalarType::Float;
  Shape shape;

 private:
  void check(Error error, const std::string& step) const {
    if (error == Error::Ok) return;
    char code[16];
    std::snprintf(code, sizeof code, "0x%02x", static_cast<unsigned>(error));
    const bool running = step == "running";
    std::string what = meaning(error, running);
    if (running && input_.shape != shape) {
      what += ", " + shape_text(shape) + " and not " + shape_text(input_.shape);
    }
    throw std::runtime_error(base_name(path_) + ": " + step + " failed: " + what + " (" + code + ")");
  }

  std::string path_, method_ = "forward";
  ETDumpGen* tracer_ = nullptr;
  std::unique_ptr<Module> module_;
  Array input_, output_;
  TensorPtr tensor_;
};

// Before loading: a loaded method keeps its number.
inline void set_threads(uint32_t threads) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool != nullptr && pool->get_thread_count() != threads) pool->_unsafe_reset_threadpool(threads);
}
