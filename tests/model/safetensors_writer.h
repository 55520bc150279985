#ifndef CARAVAN_TESTS_MODEL_SAFETENSORS_WRITER_H_
#define CARAVAN_TESTS_MODEL_SAFETENSORS_WRITER_H_

// The bytes of .safetensors files, well formed or not.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace caravan {

/// The length field, then the header's text, then the data, whatever they are.
inline std::string SafetensorsBytes(uint64_t header_length, absl::string_view header,
                                    absl::string_view data) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header_length >> (8 * i)));
  bytes.append(header.data(), header.size());
  bytes.append(data.data(), data.size());
  return bytes;
}

inline std::string SafetensorsBytes(absl::string_view header, absl::string_view data) {
  return SafetensorsBytes(header.size(), header, data);
}

inline nlohmann::json TensorHeader(const std::string& dtype, const nlohmann::json& shape,
                                   int64_t begin, int64_t end) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, end}}};
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_MODEL_SAFETENSORS_WRITER_H_
