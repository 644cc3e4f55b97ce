// Says of each bundle whether it is whole: its manifest, the sha256 of its segments, no weights in
// other files. No network is opened, so no ONNX Runtime is needed.
//
//     check_bundle digits.bundle other.bundle
//
// The exit code is 3 where one of them cannot be used.
#include <iostream>

#include "early_exit.hpp"

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "usage: check_bundle BUNDLE...\n";
    return 2;
  }
  int code = 0;
  for (int i = 1; i < count; ++i) {
    try {
      const early_exit::Manifest manifest = early_exit::read_manifest(arguments[i]);
      std::cout << arguments[i] << ": " << manifest.name << ", " << manifest.segments.size()
                << " segments\n";
    } catch (const early_exit::Error& error) {
      std::cout << error.what() << "\n";
      code = error.exit_code();
    }
  }
  return code;
}
