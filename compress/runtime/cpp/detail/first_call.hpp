// The first call of a stranger's network, which may never end, with a time limit.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <thread>

#include "onnxruntime_backend.hpp"

namespace early_exit::detail {

constexpr double kMaxSeconds = 1e6;
constexpr std::chrono::seconds kGrace{2};

inline std::string plain(double number) {
  std::ostringstream stream;
  stream.imbue(std::locale::classic());
  stream << number;
  return stream.str();
}

/// Opens a bundle in a thread of its own, which holds it until it ends.
class FirstCall : public std::enable_shared_from_this<FirstCall> {
 public:
  std::unique_ptr<Backend> opened(const std::filesystem::path& bundle, const Manifest& manifest,
                                  const Options& options) {
    std::thread thread([self = shared_from_this(), bundle, manifest, options] {
      self->work(bundle, manifest, options);
    });
    std::unique_lock<std::mutex> held(lock_);
    const auto is_done = [this] { return is_done_; };
    const std::chrono::duration<double> limit(options.first_call_seconds);
    if (!ended_.wait_for(held, limit, is_done)) {
      if (backend_ != nullptr) backend_->interrupt();
      const bool has_ended = ended_.wait_for(held, kGrace, is_done);
      held.unlock();
      has_ended ? thread.join() : thread.detach();
      throw ToolchainError("the first call of bundle " + bundle.string() +
                           " did not end within " + plain(options.first_call_seconds) +
                           " seconds; it may hold an endless loop, or this machine is slow: allow "
                           "more with --first-call-seconds");
    }
    held.unlock();
    thread.join();
    if (failed_ != nullptr) std::rethrow_exception(failed_);
    return std::move(backend_);
  }

 private:
  void work(const std::filesystem::path& bundle, const Manifest& manifest,
            const Options& options) {
    std::exception_ptr failed;
    try {
      auto made = std::make_unique<OnnxRuntimeBackend>(bundle, manifest, options);
      OnnxRuntimeBackend& backend = *made;
      {
        const std::lock_guard<std::mutex> held(lock_);
        backend_ = std::move(made);
      }
      backend.try_once();
    } catch (...) {  // thrown again in the caller's thread
      failed = std::current_exception();
    }
    const std::lock_guard<std::mutex> held(lock_);
    failed_ = failed;
    is_done_ = true;
    ended_.notify_all();
  }

  std::mutex lock_;
  std::condition_variable ended_;
  bool is_done_ = false;
  std::exception_ptr failed_;
  std::unique_ptr<OnnxRuntimeBackend> backend_;
};

}  // namespace early_exit::detail

namespace early_exit {

std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path& bundle,
                                          const Manifest& manifest, const Options& options) {
  const double seconds = options.first_call_seconds;
  if (!(seconds > 0 && seconds <= detail::kMaxSeconds)) {
    throw UserInputError("--first-call-seconds is " + detail::plain(seconds) +
                         "; expected seconds above 0, at most 1e+06");
  }
  return std::make_shared<detail::FirstCall>()->opened(bundle, manifest, options);
}

}  // namespace early_exit
