// Early exit without Python: runs a bundle of `python -m compress.export_trt`, decides the same.
//
//     early_exit::Dispatcher dispatcher("digits.bundle");
//     early_exit::Dispatched found = dispatcher.run(images, count);  // float32 (count, C, H, W)
//     found.classes[0], found.exits[0], found.logits_of(0)
//
// C++17 and POSIX. One source, early_exit.cpp, is compiled along; nothing else is needed to build.
// ONNX Runtime is looked for when a bundle is opened: libonnxruntime.so.1, of 1.5 or later.
//
// What is refused, with what words, and every decision follow compress/runtime/*.py, which
// tests/runtime/test_cpp.py compares case by case. Differences are told in docs/cpp.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace early_exit {

/// The root of every error that is told to a person, in one sentence or two.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  /// With which a program should end, as the doors of Python do.
  virtual int exit_code() const noexcept = 0;
};

/// A bundle, option or image that was given cannot be used.
class UserInputError : public Error {
 public:
  using Error::Error;
  int exit_code() const noexcept override { return 3; }
};

/// What runs segments is missing, cannot run the bundle, or does not end in time.
class ToolchainError : public Error {
 public:
  using Error::Error;
  int exit_code() const noexcept override { return 4; }
};

enum class ElementType { float32, float16, int32, int64, boolean };

/// As manifests spell it: "float32", …, "bool".
const char* name_of(ElementType type);

/// Bytes of one element.
std::size_t size_of(ElementType type);

/// An input or output of a segment. Shapes are those of one image, without the batch.
struct TensorSpec {
  std::string name;
  ElementType type = ElementType::float32;
  std::vector<std::int64_t> shape;
  std::optional<std::string> alias;  // its name in the file, where that is another

  const std::string& file_name() const { return alias ? *alias : name; }
  std::size_t elements() const;
  std::size_t image_bytes() const { return elements() * size_of(type); }
  bool is_like(const TensorSpec& other) const {
    return type == other.type && shape == other.shape;
  }
};

/// How a picture becomes a network input: (value / 255 - mean) / std of each channel, in float32.
struct Preprocessing {
  std::int64_t height = 0, width = 0;  // pixels
  std::string resize;                  // "pillow-bicubic", "pillow-bilinear", "crop" or "none"
  std::int64_t resize_size = 0;        // of the shorter side, before the crop
  std::vector<double> mean, std;       // of values in [0, 1], one a channel
  bool untouched_at_size = false;

  /// Whether a picture that has the input's size already is neither resized nor cut.
  bool leaves_its_size() const;
};

/// One part of the network, up to an exit or to the end.
struct Segment {
  std::string file;    // in the folder of the bundle
  std::string sha256;  // of the file
  std::optional<std::string> at;  // module behind which its exit stands; none of the last segment
  std::int64_t macs = 0;          // multiply-adds of one image
  std::optional<double> threshold;  // of its gate, in [0, 1]; none of the last segment
  std::vector<TensorSpec> inputs, outputs;
  std::string precision;  // "fp32", "fp16" or "int8"

  /// What it makes for later segments.
  std::vector<TensorSpec> gives() const;
};

/// What a bundle is. Of format 2, whichever it was read from.
struct Manifest {
  std::string name;
  std::vector<std::string> classes;  // in the order of the logits; none where there are no logits
  std::optional<Preprocessing> preprocessing;
  std::pair<std::int64_t, std::int64_t> batch;  // smallest (always 1) and largest
  std::string target;
  std::int64_t opset = 0;
  std::vector<Segment> segments;

  /// E, the exits before the final head.
  std::size_t exits() const { return segments.size() - 1; }
  std::vector<double> thresholds() const;
  /// What the first segment takes, (C, H, W).
  const TensorSpec& image() const { return segments.front().inputs.front(); }
  /// What the network gives beside its logits; none where it has exits.
  std::vector<TensorSpec> further_outputs() const;
  /// What lives on behind a segment, as it was made: the image, then what crosses.
  std::vector<TensorSpec> living(std::size_t segment) const;
  /// Use other thresholds: one for all exits, or one for each.
  /// UserInputError: they do not fit the exits, or lie outside [0, 1].
  void set_thresholds(const std::vector<double>& thresholds);
};

/// Read and check the manifest of a bundle, of format 1 or 2, and the sha256 of every segment.
/// UserInputError: it is no bundle, of another version, inconsistent, or a segment is missing or
/// altered.
Manifest read_manifest(const std::filesystem::path& bundle, bool check_files = true);

/// Runs the segments of one bundle, in order, on one batch at a time: load, run(0), keep, run(1)…
/// Derive from it to run segments by something else than ONNX Runtime.
class Backend {
 public:
  virtual ~Backend() = default;
  /// The largest batch that `load` takes.
  virtual std::size_t max_batch() const = 0;
  /// Take a batch (count, C, H, W). It is copied or used at once.
  virtual void load(const float* images, std::size_t count) = 0;
  /// Run a segment; return gates (B,), valid until the next call, and null of the last segment.
  virtual const float* run(std::size_t segment) = 0;
  /// Logits (B, K) of the segment just run, valid until the next `run`.
  virtual const float* logits() = 0;
  /// A further output (B, …) of the segment just run, valid until the next `run`.
  virtual const void* output(const std::string& name) = 0;
  /// Let only these images of the batch travel on: their places, ascending, at least one.
  virtual void keep(const std::vector<std::size_t>& rows) = 0;
};

struct Options {
  /// In place of the manifest's: one for all exits, or one for each, in [0, 1]; empty leaves them.
  std::vector<double> thresholds;
  /// Of ONNX Runtime on the CPU, inside an operation; 0 leaves it to ONNX Runtime.
  int threads = 0;
  /// That ONNX Runtime may take to open the segments and to run each once, on a blank image. Work
  /// that does not end even when asked to is left behind in a thread: end by std::_Exit then.
  double first_call_seconds = 60.0;
  /// Path of libonnxruntime; empty looks for libonnxruntime.so.1 where the system looks.
  std::string library;
};

/// Open a bundle in ONNX Runtime, on the CPU, and run every segment once.
/// UserInputError: a segment takes or gives something else than its manifest says.
/// ToolchainError: ONNX Runtime is missing, cannot read a segment, or does not end in time.
std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path& bundle,
                                          const Manifest& manifest, const Options& options = {});

struct SegmentTime {
  std::size_t segment, images;
  double milliseconds;
};

/// A further output of all images, (N, …), with its bytes in the machine's order.
struct Output {
  TensorSpec spec;
  std::vector<unsigned char> bytes;
};

/// What became of each image, in the order in which they came.
struct Dispatched {
  std::size_t class_count = 0;        // K; 0 where the network is no classifier
  std::vector<float> logits;          // (N, K), of the exit where each image left
  std::vector<std::int64_t> classes;  // (N,), the most likely; -1 where the logits are not finite,
                                      // and where there are none
  std::vector<std::int64_t> exits;    // (N,), E for the final head
  std::vector<SegmentTime> segment_ms;  // of every segment that ran; empty unless asked for
  std::vector<Output> outputs;          // what the network gives beside its logits

  const float* logits_of(std::size_t image) const { return logits.data() + image * class_count; }
};

/// Runs a bundle. Threads may share one: a call waits for the one before it.
class Dispatcher {
 public:
  explicit Dispatcher(const std::filesystem::path& bundle, const Options& options = {});
  /// With a backend of your own.
  Dispatcher(Manifest manifest, std::unique_ptr<Backend> backend);

  const Manifest& manifest() const { return manifest_; }
  std::size_t max_batch() const { return backend_->max_batch(); }

  /// Use other thresholds from the next image on; nothing is rebuilt.
  void set_thresholds(const std::vector<double>& thresholds);

  /// Classify prepared images (count, C, H, W). They are read, not kept.
  ///
  /// An image that holds NaN or infinity runs as a blank one, so that it does not spoil its
  /// neighbours; its logits are NaN and its class is -1.
  Dispatched run(const float* images, std::size_t count, bool times = false);

  /// Classify pixels (count, C, H, W) of the network's size, normalised as the manifest says.
  /// UserInputError: the manifest does not say how.
  Dispatched run(const std::uint8_t* pixels, std::size_t count, bool times = false);

 private:
  void check_count(std::size_t count) const;
  bool replace_poisoned(const float* images, std::size_t count);
  void run_one(const float* image, Dispatched& found, bool times);
  void run_batch(const float* images, std::size_t start, std::size_t count, Dispatched& found,
                 bool times);
  void run_whole(const float* images, std::size_t count, Dispatched& found, bool times);
  const float* run_segment(std::size_t segment, std::size_t images, Dispatched& found, bool times);
  void spoil(std::size_t image, Dispatched& found) const;
  void copy_logits(std::size_t from, std::size_t to, Dispatched& found);

  Manifest manifest_;
  std::unique_ptr<Backend> backend_;
  std::vector<double> bars_;
  std::vector<TensorSpec> further_;
  std::size_t image_elements_ = 0;
  std::vector<float> blanked_;     // a copy of images of which some are not finite
  std::vector<bool> poisoned_;     // which
  std::mutex lock_;
};

}  // namespace early_exit
