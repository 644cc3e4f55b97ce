// Bundles on the disk: the manifest, and the proof that the segments are the ones written.
#pragma once

#include "consistency.hpp"
#include "mapped_file.hpp"
#include "onnx_wire.hpp"
#include "sha256.hpp"

namespace early_exit::detail {

inline Json read_json(const std::filesystem::path& path, const MappedFile& file) {
  if (file.size() > kMaxBytes) {
    throw Unusable(std::to_string(file.size()) + " bytes, more than a manifest has");
  }
  Json value = JsonReader(file.text()).read();
  if (!value.is<Object>()) {
    throw Unusable(std::string(kind_of(value)) + " in place of an object");
  }
  const Json* found = value.find("format");
  const auto is_format = [found](const char* name) {
    return found != nullptr && found->is<std::string>() && found->as<std::string>() == name;
  };
  if (is_format(kFormat1)) return upgraded(value);
  if (!is_format(kFormat)) {
    throw UserInputError("manifest " + path.string() + " has the format " +
                         (found == nullptr ? "None" : shown(*found)) + "; this version reads " +
                         kFormat + ", so export the bundle again or install the version that "
                         "wrote it");
  }
  return value;
}

inline void check_file(const std::filesystem::path& bundle, const Segment& segment) {
  const std::filesystem::path path = bundle / segment.file;
  const MappedFile file(path, "segment");
  const std::string found = Sha256::of(file.bytes(), file.size());
  if (found != segment.sha256) {
    throw UserInputError("segment " + path.string() + " has sha256 " + found.substr(0, 12) +
                         "…, its manifest says " + segment.sha256.substr(0, 12) +
                         "…; it was altered or belongs to another bundle, so copy or export the "
                         "bundle again");
  }
  bool has_elsewhere = false;
  try {
    has_elsewhere = OnnxWire(file.bytes(), file.size()).has_external_data();
  } catch (const Unusable& error) {
    throw UserInputError("segment " + path.string() + " cannot be read as ONNX (" + error.what() +
                         "); export the bundle again");
  }
  if (has_elsewhere) {
    throw UserInputError("segment " + path.string() +
                         " keeps weights in other files, which no sha256 covers; export the "
                         "bundle again, which puts all weights into the segments");
  }
}

}  // namespace early_exit::detail

namespace early_exit {

Manifest read_manifest(const std::filesystem::path& bundle, bool check_files) {
  if (!std::filesystem::is_directory(bundle)) {
    throw UserInputError("bundle " + bundle.string() +
                         " is not a folder; expected what python -m compress.export_trt wrote");
  }
  const std::filesystem::path path = bundle / "manifest.json";
  Manifest manifest;
  try {
    manifest = detail::manifest_of(detail::read_json(path, detail::MappedFile(path, "manifest")));
    detail::check_consistent(manifest);
  } catch (const detail::Unusable& error) {
    throw UserInputError("manifest " + path.string() + " cannot be used (" + error.what() +
                         "); it is damaged, so export the bundle again");
  }
  for (std::size_t i = 0; check_files && i < manifest.segments.size(); ++i) {
    detail::check_file(bundle, manifest.segments[i]);
  }
  return manifest;
}

}  // namespace early_exit
