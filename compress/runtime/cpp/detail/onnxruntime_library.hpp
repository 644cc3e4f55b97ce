// ONNX Runtime's library, loaded when it is needed, and the few functions of it that are called.
//
// Its C interface is a table of functions whose order never changes: new ones come behind. The
// numbers below are their places in OrtApi, which onnxruntime_c_api.h documents; no header and no
// library is needed to build. All those called are in version 5 of the table, of ONNX Runtime 1.5.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <string>

#include "../early_exit.hpp"

namespace early_exit::detail {

struct OrtEnv;
struct OrtStatus;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorInfo;
struct OrtAllocator;

class OnnxRuntimeLibrary {
 public:
  /// ToolchainError: it is missing, or too old.
  explicit OnnxRuntimeLibrary(const std::string& path) {
    const Base* base = base_of(path);
    version = base->version();
    table_ = base->table(kTableVersion);
    if (table_ == nullptr) {
      throw ToolchainError("ONNX Runtime " + version + " is too old; install one from 1.5 on");
    }
  }

  OnnxRuntimeLibrary(const OnnxRuntimeLibrary&) = delete;
  OnnxRuntimeLibrary& operator=(const OnnxRuntimeLibrary&) = delete;

  std::string version;

  /// Throw `Failure` with the message of a status that is none of success.
  template <typename Failure>
  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = error_message(status);
    release_status(status);
    throw Failure(message);
  }

 private:
  struct Base {
    const void* const* (*table)(std::uint32_t version);
    const char* (*version)();
  };
  static constexpr std::uint32_t kTableVersion = 5;

  static const Base* base_of(const std::string& path) {
    const char* name = path.empty() ? "libonnxruntime.so.1" : path.c_str();
    void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);  // never closed: it has threads
    if (library == nullptr) {
      throw ToolchainError("ONNX Runtime's library does not load (" + std::string(::dlerror()) +
                           "); install it, or give the path of libonnxruntime.so by --library");
    }
    void* found = ::dlsym(library, "OrtGetApiBase");
    if (found == nullptr) {
      throw ToolchainError("library " + std::string(name) +
                           " is not that of ONNX Runtime; give the path of libonnxruntime.so by "
                           "--library");
    }
    return reinterpret_cast<const Base* (*)()>(found)();
  }

  template <std::size_t place, typename Function>
  struct Slot;
  template <std::size_t place, typename Result, typename... Arguments>
  struct Slot<place, Result(Arguments...)> {
    const void* const* const& table;
    Result operator()(Arguments... arguments) const {
      return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table[place]))(
          arguments...);
    }
  };
  template <std::size_t place, typename... Arguments>
  using Call = Slot<place, OrtStatus*(Arguments...)>;
  template <std::size_t place, typename Released>
  using Release = Slot<place, void(Released*)>;

  const void* const* table_ = nullptr;

 public:
  Slot<2, const char*(const OrtStatus*)> error_message{table_};
  Call<3, int, const char*, OrtEnv**> create_env{table_};
  Call<7, const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**>
      create_session{table_};
  Call<9, OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*,
       std::size_t, const char* const*, std::size_t, OrtValue**>
      run{table_};
  Call<10, OrtSessionOptions**> create_session_options{table_};
  Call<22, OrtSessionOptions*, int> set_log_severity{table_};
  Call<24, OrtSessionOptions*, int> set_intra_op_threads{table_};
  Call<25, OrtSessionOptions*, int> set_inter_op_threads{table_};
  Call<30, const OrtSession*, std::size_t*> input_count{table_};
  Call<31, const OrtSession*, std::size_t*> output_count{table_};
  Call<33, const OrtSession*, std::size_t, OrtTypeInfo**> input_type{table_};
  Call<34, const OrtSession*, std::size_t, OrtTypeInfo**> output_type{table_};
  Call<36, const OrtSession*, std::size_t, OrtAllocator*, char**> input_name{table_};
  Call<37, const OrtSession*, std::size_t, OrtAllocator*, char**> output_name{table_};
  Call<39, OrtRunOptions**> create_run_options{table_};
  Call<46, OrtRunOptions*> terminate{table_};
  Call<49, const OrtMemoryInfo*, void*, std::size_t, const std::int64_t*, std::size_t, int,
       OrtValue**>
      create_tensor{table_};
  Call<55, const OrtTypeInfo*, const OrtTensorInfo**> tensor_info{table_};
  Call<60, const OrtTensorInfo*, int*> element_type{table_};
  Call<61, const OrtTensorInfo*, std::size_t*> rank{table_};
  Call<62, const OrtTensorInfo*, std::int64_t*, std::size_t> sizes{table_};
  Call<63, const OrtTensorInfo*, const char**, std::size_t> size_names{table_};
  Call<69, int, int, OrtMemoryInfo**> create_cpu_memory_info{table_};
  Call<76, OrtAllocator*, void*> free{table_};
  Call<78, OrtAllocator**> default_allocator{table_};
  Release<92, OrtEnv> release_env{table_};
  Release<93, OrtStatus> release_status{table_};
  Release<94, OrtMemoryInfo> release_memory_info{table_};
  Release<95, OrtSession> release_session{table_};
  Release<96, OrtValue> release_value{table_};
  Release<97, OrtRunOptions> release_run_options{table_};
  Release<98, OrtTypeInfo> release_type_info{table_};
  Release<100, OrtSessionOptions> release_session_options{table_};
  Call<130, OrtSessionOptions*, const char*, const char*> add_config{table_};
};

/// Owns what the library made, and gives it back to it.
template <typename Held>
class Owned {
 public:
  using Release = void (*)(const OnnxRuntimeLibrary&, Held*);
  Owned(const OnnxRuntimeLibrary& library, Release release)
      : library_(&library), release_(release) {}
  Owned(Owned&& other) noexcept
      : library_(other.library_), release_(other.release_), held_(other.held_) {
    other.held_ = nullptr;
  }
  Owned& operator=(Owned&&) = delete;
  ~Owned() {
    if (held_ != nullptr) release_(*library_, held_);
  }

  Held** place() { return &held_; }
  Held* get() const { return held_; }

 private:
  const OnnxRuntimeLibrary* library_;
  Release release_;
  Held* held_ = nullptr;
};

}  // namespace early_exit::detail
