// SHA-256, of FIPS 180-4.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>

namespace early_exit::detail {

class Sha256 {
 public:
  /// The hexadecimal digest of bytes.
  static std::string of(const unsigned char* bytes, std::size_t size) {
    Sha256 digest;
    const std::size_t whole = size / kBlock * kBlock;
    for (std::size_t place = 0; place < whole; place += kBlock) digest.take(bytes + place);
    digest.finish(bytes + whole, size - whole, size);
    return digest.hex();
  }

 private:
  static constexpr std::size_t kBlock = 64;

  static std::uint32_t turned(std::uint32_t word, int by) { return word >> by | word << (32 - by); }

  void finish(const unsigned char* rest, std::size_t left, std::size_t size) {
    std::array<unsigned char, 2 * kBlock> end{};
    if (left > 0) std::memcpy(end.data(), rest, left);
    end[left] = 0x80;
    const std::size_t length = left + 9 <= kBlock ? kBlock : 2 * kBlock;
    const std::uint64_t bits = std::uint64_t{size} * 8;
    for (std::size_t i = 0; i < 8; ++i) {
      end[length - 1 - i] = static_cast<unsigned char>(bits >> (8 * i));
    }
    for (std::size_t place = 0; place < length; place += kBlock) take(end.data() + place);
  }

  void take(const unsigned char* block) {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i) {
      w[i] = std::uint32_t{block[4 * i]} << 24 | std::uint32_t{block[4 * i + 1]} << 16 |
             std::uint32_t{block[4 * i + 2]} << 8 | std::uint32_t{block[4 * i + 3]};
    }
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t s0 = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3;
      const std::uint32_t s1 = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < 64; ++i) {
      const std::uint32_t s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25);
      const std::uint32_t first = h + s1 + ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
      const std::uint32_t s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22);
      const std::uint32_t second = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::array<std::uint32_t, 8> added = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state_[i] += added[i];
  }

  std::string hex() const {
    constexpr char digits[] = "0123456789abcdef";
    std::string found;
    for (const std::uint32_t word : state_) {
      for (int shift = 28; shift >= 0; shift -= 4) found += digits[word >> shift & 0xF];
    }
    return found;
  }

  static constexpr std::uint32_t kRounds[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
      0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
      0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
      0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
      0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
      0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
      0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
      0xc67178f2,
  };

  std::array<std::uint32_t, 8> state_ = {
      0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
      0x5be0cd19,
  };
};

}  // namespace early_exit::detail
