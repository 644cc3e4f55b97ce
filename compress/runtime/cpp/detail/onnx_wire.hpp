// Does an ONNX file keep weights in other files? Read from its bytes, without a parser of ONNX.
//
// The sha256 of a segment covers its own file alone, so weights that lie elsewhere are weights that
// nobody compared, and their names are paths that ONNX Runtime would open. The bytes are protobuf's
// wire format (https://protobuf.dev/programming-guides/encoding) of the messages of onnx.proto;
// only fields that lead to tensors are entered.
#pragma once

#include <optional>
#include <string>

#include "json.hpp"

namespace early_exit::detail {

class OnnxWire {
 public:
  OnnxWire(const unsigned char* content, std::size_t size) : content_(content), size_(size) {}

  /// Whether a tensor has its data elsewhere. Unusable: the file is no ONNX file.
  bool has_external_data() const { return finds(kModel, {0, size_}, kMaxDepth); }

 private:
  enum Message { kModel, kTraining, kFunction, kGraph, kNode, kAttribute, kSparse, kTensor };
  struct Child {
    Message holder;
    std::uint32_t field;
    Message held;
  };
  struct Span {
    std::size_t place, end;
  };
  __extension__ using Varint = unsigned __int128;  // of ten groups of seven bits
  struct Field {
    std::uint32_t number;
    std::optional<Span> bytes;  // where they lie; none of a whole number
    Varint value;
  };

  static constexpr int kMaxDepth = 100;  // protobuf's own limit
  static constexpr std::uint32_t kExternalData = 13, kDataLocation = 14;  // of a tensor
  static constexpr Child kChildren[] = {
      {kModel, 7, kGraph},       {kModel, 20, kTraining},    {kModel, 25, kFunction},
      {kTraining, 1, kGraph},    {kTraining, 2, kGraph},     {kFunction, 7, kNode},
      {kFunction, 11, kAttribute}, {kGraph, 1, kNode},       {kGraph, 5, kTensor},
      {kGraph, 15, kSparse},     {kNode, 5, kAttribute},     {kAttribute, 5, kTensor},
      {kAttribute, 6, kGraph},   {kAttribute, 10, kTensor},  {kAttribute, 11, kGraph},
      {kAttribute, 22, kSparse}, {kAttribute, 23, kSparse},  {kSparse, 1, kTensor},
      {kSparse, 2, kTensor}};
  static constexpr const char* kNames[] = {"model", "training",  "function", "graph",
                                           "node",  "attribute", "sparse",   "tensor"};

  bool finds(Message message, Span span, int depth) const {
    if (depth == 0) throw Unusable("its messages are nested too deeply");
    while (span.place < span.end) {
      const Field field = next_field(span);
      if (message == kTensor) {
        const bool lies_elsewhere =
            field.number == kDataLocation && (field.bytes || field.value != 0);
        if (field.number == kExternalData || lies_elsewhere) return true;
        continue;
      }
      for (const Child& child : kChildren) {
        if (child.holder != message || child.field != field.number) continue;
        if (!field.bytes) {
          throw Unusable("field " + std::to_string(field.number) + " of its " + kNames[message] +
                         " holds no message");
        }
        if (finds(child.held, *field.bytes, depth - 1)) return true;
      }
    }
    return false;
  }

  Field next_field(Span& span) const {
    const auto tag = static_cast<std::uint32_t>(varint(span));
    const std::uint32_t number = tag >> 3, kind = tag & 7;
    if (kind == 0) return {number, std::nullopt, varint(span)};
    Varint size = kind == 1 ? 8 : 4;
    if (kind == 2) {
      size = varint(span);
    } else if (kind != 1 && kind != 5) {
      throw Unusable("byte " + std::to_string(span.place) + " is no field");
    }
    if (size > span.end - span.place) {
      throw Unusable("a field at byte " + std::to_string(span.place) +
                     " is longer than its message");
    }
    const Span bytes{span.place, span.place + static_cast<std::size_t>(size)};
    span.place = bytes.end;
    return {number, bytes, 0};
  }

  Varint varint(Span& span) const {
    Varint value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (span.place >= span.end) throw Unusable("it is cut off");
      const unsigned char byte = content_[span.place++];
      value |= static_cast<Varint>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    throw Unusable("the number before byte " + std::to_string(span.place) + " is too long");
  }

  const unsigned char* content_;
  std::size_t size_;
};

}  // namespace early_exit::detail
