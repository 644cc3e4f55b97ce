// Segments in ONNX Runtime, on the CPU.
//
// Every tensor lies in a buffer that is made once, and a call for a number of images is prepared
// once: it passes pointers and copies nothing, however many tensors cross. Where images leave, the
// rows of those that live on move up where they lie.
#pragma once

#include <cstring>
#include <unordered_map>

#include "onnxruntime_session.hpp"
#include "tensor_memory.hpp"

namespace early_exit::detail {

class OnnxRuntimeBackend : public Backend {
 public:
  OnnxRuntimeBackend(const std::filesystem::path& bundle, const Manifest& manifest,
                     const Options& options)
      : library_(options.library),
        maker_(library_, options.threads),
        memory_(library_, [](const OnnxRuntimeLibrary& made,
                             OrtMemoryInfo* info) { made.release_memory_info(info); }),
        run_options_(library_, [](const OnnxRuntimeLibrary& made,
                                  OrtRunOptions* held) { made.release_run_options(held); }),
        segments_(manifest.segments),
        max_batch_(static_cast<std::size_t>(manifest.batch.second)),
        calls_(manifest.segments.size()) {
    constexpr int arena = 1, default_memory = 0;
    check(library_.create_cpu_memory_info(arena, default_memory, memory_.place()));
    check(library_.create_run_options(run_options_.place()));
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      sessions_.push_back(maker_.open(bundle / segments_[i].file));
      check_session(library_, sessions_.back().get(), segments_[i], max_batch_);
      living_.push_back(manifest.living(i));
    }
    try {
      make_buffers(manifest);
    } catch (const std::bad_alloc&) {
      throw ToolchainError("there is no memory for batches of " + std::to_string(max_batch_) +
                           " images of " + manifest.name +
                           "; export the bundle with a smaller --batch");
    }
  }

  std::size_t max_batch() const override { return max_batch_; }

  void load(const float* images, std::size_t count) override {
    rows_ = count;
    std::memcpy(images_->bytes(), images, count * segments_.front().inputs.front().image_bytes());
  }

  const float* run(std::size_t segment) override {
    Call& call = call_of(segment);
    OrtStatus* status = library_.run(
        sessions_[segment].get(), is_trying_ ? run_options_.get() : nullptr,
        call.input_names.data(), call.inputs.data(), call.inputs.size(), call.output_names.data(),
        call.outputs.size(), call.outputs.data());
    if (status != nullptr) refuse(segment, status);
    ran_ = segment;
    const auto gate = results_[segment].find("gate");
    return gate == results_[segment].end() ? nullptr : gate->second.floats();
  }

  const float* logits() override { return static_cast<const float*>(output("logits")); }

  const void* output(const std::string& name) override {
    const auto found = results_[ran_].find(name);
    return found == results_[ran_].end() ? nullptr : found->second.bytes();
  }

  void keep(const std::vector<std::size_t>& rows) override {
    for (const TensorSpec& spec : living_[ran_]) {
      unsigned char* bytes = bytes_of(ran_, spec);
      const std::size_t size = spec.image_bytes();
      for (std::size_t place = 0; place < rows.size(); ++place) {  // ascending: none is overwritten
        if (place == rows[place]) continue;
        std::memcpy(bytes + place * size, bytes + rows[place] * size, size);
      }
    }
    rows_ = rows.size();
  }

  /// Run every segment once, on a blank image, in a way that `interrupt` can end.
  void try_once() {
    is_trying_ = true;
    const std::vector<float> blank(segments_.front().inputs.front().elements(), 0.0f);
    load(blank.data(), 1);
    for (std::size_t i = 0; i < segments_.size(); ++i) run(i);
    is_trying_ = false;
  }

  /// Let `try_once`, which another thread is in, end with an error.
  void interrupt() { check(library_.terminate(run_options_.get())); }

 private:
  using Value = Owned<OrtValue>;

  /// A segment ready to run on a number of images.
  struct Call {
    std::vector<Value> values;
    std::vector<const char*> input_names, output_names;
    std::vector<const OrtValue*> inputs;
    std::vector<OrtValue*> outputs;
  };

  void check(OrtStatus* status) const { library_.check<ToolchainError>(status); }

  [[noreturn]] void refuse(std::size_t segment, OrtStatus* status) const {
    const std::string why = one_line(library_.error_message(status));
    library_.release_status(status);
    throw ToolchainError("ONNX Runtime " + library_.version + " failed in " +
                         segments_[segment].file + " (" + why + "); export the bundle again");
  }

  void make_buffers(const Manifest& manifest) {
    const Places places = places_of(manifest);
    std::vector<std::shared_ptr<Buffer>> shared;
    for (const std::size_t size : places.image_bytes) {
      shared.push_back(std::make_shared<Buffer>(max_batch_ * size));
    }
    images_ = std::make_shared<Buffer>(max_batch_ * manifest.image().image_bytes());
    crossing_["image"] = images_;
    for (const auto& [name, place] : places.of) crossing_[name] = shared[place];
    for (const Segment& segment : segments_) {
      auto& results = results_.emplace_back();
      for (const TensorSpec& spec : segment.outputs) {
        if (crossing_.count(spec.name) == 0) {
          results.emplace(spec.name, Buffer(max_batch_ * spec.image_bytes()));
        }
      }
    }
  }

  unsigned char* bytes_of(std::size_t segment, const TensorSpec& spec) {
    const auto result = results_[segment].find(spec.name);
    return result == results_[segment].end() ? crossing_.at(spec.name)->bytes()
                                             : result->second.bytes();
  }

  Call& call_of(std::size_t segment) {
    const auto found = calls_[segment].find(rows_);
    return found == calls_[segment].end() ? prepared(segment) : found->second;
  }

  Call& prepared(std::size_t segment) {
    Call call;
    for (const TensorSpec& spec : segments_[segment].inputs) {
      call.input_names.push_back(spec.file_name().c_str());
      call.inputs.push_back(bound(segment, spec, call));
    }
    for (const TensorSpec& spec : segments_[segment].outputs) {
      call.output_names.push_back(spec.file_name().c_str());
      call.outputs.push_back(bound(segment, spec, call));
    }
    return calls_[segment].emplace(rows_, std::move(call)).first->second;
  }

  OrtValue* bound(std::size_t segment, const TensorSpec& spec, Call& call) {
    std::vector<std::int64_t> shape = {static_cast<std::int64_t>(rows_)};
    shape.insert(shape.end(), spec.shape.begin(), spec.shape.end());
    Value value(library_, [](const OnnxRuntimeLibrary& made, OrtValue* held) {
      made.release_value(held);
    });
    check(library_.create_tensor(memory_.get(), bytes_of(segment, spec),
                                 rows_ * spec.image_bytes(), shape.data(), shape.size(),
                                 element_of(spec.type).onnx, value.place()));
    call.values.push_back(std::move(value));
    return call.values.back().get();
  }

  OnnxRuntimeLibrary library_;
  SessionMaker maker_;
  Owned<OrtMemoryInfo> memory_;
  Owned<OrtRunOptions> run_options_;  // given at each call they would cost microseconds
  std::vector<Segment> segments_;
  std::size_t max_batch_;
  std::vector<Owned<OrtSession>> sessions_;
  std::vector<std::vector<TensorSpec>> living_;
  std::shared_ptr<Buffer> images_;
  std::unordered_map<std::string, std::shared_ptr<Buffer>> crossing_;  // the image among them
  std::vector<std::unordered_map<std::string, Buffer>> results_;       // of each segment
  std::vector<std::unordered_map<std::size_t, Call>> calls_;           // by the number of images
  std::size_t rows_ = 0;  // images that are still on their way
  std::size_t ran_ = 0;   // the segment that ran last
  bool is_trying_ = false;
};

}  // namespace early_exit::detail
