// The content of a file, mapped into memory: segments are large, and read once for their sha256.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "../early_exit.hpp"

namespace early_exit::detail {

class MappedFile {
 public:
  /// UserInputError: it is missing, no file, empty, or not readable. `what` begins the message.
  MappedFile(const std::filesystem::path& path, const char* what) {
    const std::string subject = std::string(what) + " " + path.string();
    struct stat found {};
    if (::stat(path.c_str(), &found) != 0) {
      throw UserInputError(subject + " does not exist; check the path");
    }
    if (!S_ISREG(found.st_mode)) {
      throw UserInputError(subject + " is not a file; give the path of one file");
    }
    if (found.st_size == 0) {
      throw UserInputError(subject + " is empty (0 bytes); expected saved weights");
    }
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw UserInputError(subject + " is not readable; check its permissions");
    size_ = static_cast<std::size_t>(found.st_size);
    content_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    const int error = errno;
    ::close(file);
    if (content_ == MAP_FAILED) {
      throw UserInputError(subject + " cannot be read (" + std::strerror(error) + ")");
    }
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { ::munmap(content_, size_); }

  const unsigned char* bytes() const { return static_cast<const unsigned char*>(content_); }
  std::size_t size() const { return size_; }
  std::string_view text() const { return {static_cast<const char*>(content_), size_}; }

 private:
  void* content_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace early_exit::detail
