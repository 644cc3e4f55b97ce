// Sessions of ONNX Runtime on the CPU, with the options that Python's have, of the files meant.
#pragma once

#include <algorithm>
#include <iterator>
#include <map>

#include "manifest.hpp"
#include "onnxruntime_library.hpp"

namespace early_exit::detail {

// On the CPU the first fusion's kernel takes three times as long as its parts, and the second keeps
// int8 products with a bias from becoming integer products, and gains nothing in float.
constexpr char kSlower[] = "SkipLayerNormFusion;MatMulAddFusion";
constexpr int kLogErrors = 3;

inline std::string one_line(const std::string& text) {
  std::istringstream words(text);
  std::string found, word;
  while (words >> word) found += (found.empty() ? "" : " ") + word;
  return cut(found, 300);
}

class SessionMaker {
 public:
  SessionMaker(const OnnxRuntimeLibrary& library, int threads)
      : library_(library),
        env_(library, [](const OnnxRuntimeLibrary& made, OrtEnv* env) { made.release_env(env); }),
        options_(library, [](const OnnxRuntimeLibrary& made, OrtSessionOptions* options) {
          made.release_session_options(options);
        }) {
    check(library.create_env(kLogErrors, "early_exit", env_.place()));
    check(library.create_session_options(options_.place()));
    check(library.set_intra_op_threads(options_.get(), threads));
    check(library.set_inter_op_threads(options_.get(), 1));
    // Pools that spin take the cores from the segment that runs.
    check(library.add_config(options_.get(), "session.intra_op.allow_spinning", "0"));
    check(library.add_config(options_.get(), "optimization.disable_specified_optimizers", kSlower));
    check(library.set_log_severity(options_.get(), kLogErrors));
  }

  /// ToolchainError: ONNX Runtime cannot read the file.
  Owned<OrtSession> open(const std::filesystem::path& file) const {
    Owned<OrtSession> session(library_, [](const OnnxRuntimeLibrary& made, OrtSession* held) {
      made.release_session(held);
    });
    try {
      library_.check<Unusable>(
          library_.create_session(env_.get(), file.c_str(), options_.get(), session.place()));
    } catch (const Unusable& error) {
      throw ToolchainError("ONNX Runtime " + library_.version + " cannot open " +
                           cut(file.string(), 200) + " (" + one_line(error.what()) +
                           "); export the bundle for this version, or install a newer onnxruntime");
    }
    return session;
  }

 private:
  void check(OrtStatus* status) const { library_.check<ToolchainError>(status); }

  const OnnxRuntimeLibrary& library_;
  Owned<OrtEnv> env_;
  Owned<OrtSessionOptions> options_;
};

/// What a session takes or gives: a size is -1 where the file leaves it open.
struct SessionValue {
  std::string name;
  int type = 0;
  std::vector<std::int64_t> sizes;
  std::vector<std::string> size_names;
};

class SessionReader {
 public:
  SessionReader(const OnnxRuntimeLibrary& library, const OrtSession* session)
      : library_(library), session_(session) {}

  std::vector<SessionValue> inputs() const {
    return values(library_.input_count, library_.input_name, library_.input_type);
  }
  std::vector<SessionValue> outputs() const {
    return values(library_.output_count, library_.output_name, library_.output_type);
  }

 private:
  void check(OrtStatus* status) const { library_.check<ToolchainError>(status); }

  template <typename Count, typename Name, typename Type>
  std::vector<SessionValue> values(const Count& count, const Name& name, const Type& type) const {
    std::size_t size = 0;
    check(count(session_, &size));
    OrtAllocator* allocator = nullptr;
    check(library_.default_allocator(&allocator));
    std::vector<SessionValue> found(size);
    for (std::size_t i = 0; i < size; ++i) {
      char* held = nullptr;
      check(name(session_, i, allocator, &held));
      found[i].name = held;
      check(library_.free(allocator, held));
      Owned<OrtTypeInfo> info(library_, [](const OnnxRuntimeLibrary& made, OrtTypeInfo* each) {
        made.release_type_info(each);
      });
      check(type(session_, i, info.place()));
      read_tensor(info.get(), found[i]);
    }
    return found;
  }

  void read_tensor(const OrtTypeInfo* info, SessionValue& value) const {
    const OrtTensorInfo* tensor = nullptr;  // null of what is no tensor, such as a sequence
    check(library_.tensor_info(info, &tensor));
    if (tensor == nullptr) return;
    std::size_t rank = 0;
    check(library_.element_type(tensor, &value.type));
    check(library_.rank(tensor, &rank));
    value.sizes.resize(rank);
    std::vector<const char*> names(rank, "");
    check(library_.sizes(tensor, value.sizes.data(), rank));
    check(library_.size_names(tensor, names.data(), rank));
    value.size_names.assign(names.begin(), names.end());
  }

  const OnnxRuntimeLibrary& library_;
  const OrtSession* session_;
};

/// Whether a value of a file is what the manifest says. Where batches vary, the first size is open.
inline bool fits(const SessionValue& value, const TensorSpec& spec, std::size_t max_batch) {
  if (value.type != element_of(spec.type).onnx || value.sizes.size() != spec.shape.size() + 1) {
    return false;
  }
  if (value.sizes[0] >= 0 && (max_batch > 1 || value.sizes[0] != 1)) return false;
  for (std::size_t i = 0; i < spec.shape.size(); ++i) {
    if (value.sizes[i + 1] >= 0 && value.sizes[i + 1] != spec.shape[i]) return false;
  }
  return true;
}

inline std::string described(const SessionValue& value) {
  constexpr const char* types[] = {"no tensor", "float",  "uint8",  "int8",   "uint16", "int16",
                                   "int32",     "int64",  "string", "bool",   "float16", "double",
                                   "uint32",    "uint64"};
  const auto known = value.type >= 0 && value.type < static_cast<int>(std::size(types));
  List sizes;
  for (std::size_t i = 0; i < value.sizes.size(); ++i) {
    if (value.sizes[i] >= 0) {
      sizes.emplace_back(Whole{std::to_string(value.sizes[i])});
    } else {
      sizes.push_back(value.size_names[i].empty() ? Json() : Json(value.size_names[i]));
    }
  }
  const std::string type = known ? types[value.type] : "another type";
  return value.name + " tensor(" + type + ") of shape " + shown(Json(std::move(sizes)), 200);
}

[[noreturn]] inline void refuse_misfit(const Segment& segment, const char* verb,
                                       const std::string& found, const std::string& expected) {
  throw UserInputError("segment " + segment.file + " " + verb + " " + cut(found, 200) +
                       ", its manifest says " + expected +
                       "; they are of different bundles, so export the bundle again");
}

inline void check_side(const Segment& segment, const char* verb,
                       const std::vector<SessionValue>& values,
                       const std::vector<TensorSpec>& specs, std::size_t max_batch) {
  std::map<std::string, const SessionValue*> found;
  for (const SessionValue& value : values) found[value.name] = &value;
  std::vector<std::string> held, wanted;
  for (const auto& [name, value] : found) held.push_back(name);
  for (const TensorSpec& spec : specs) wanted.push_back(spec.file_name());
  std::vector<std::string> sorted = wanted;
  std::sort(sorted.begin(), sorted.end());
  if (held != sorted) refuse_misfit(segment, verb, joined(held), joined(wanted, 100000));
  for (const TensorSpec& spec : specs) {
    const SessionValue& value = *found[spec.file_name()];
    if (fits(value, spec, max_batch)) continue;
    std::string sizes = shown(spec.shape);
    sizes = sizes.substr(1, sizes.size() - 2);
    refuse_misfit(segment, verb, described(value),
                  std::string(name_of(spec.type)) + " (N, " + sizes + ")");
  }
}

/// UserInputError unless a file takes and gives what the manifest says.
inline void check_session(const OnnxRuntimeLibrary& library, const OrtSession* session,
                          const Segment& segment, std::size_t max_batch) {
  const SessionReader reader(library, session);
  check_side(segment, "takes", reader.inputs(), segment.inputs, max_batch);
  check_side(segment, "gives", reader.outputs(), segment.outputs, max_batch);
}

}  // namespace early_exit::detail
