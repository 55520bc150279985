#ifndef CARAVAN_TESTS_SUPPORT_GOLDEN_REPLIES_H_
#define CARAVAN_TESTS_SUPPORT_GOLDEN_REPLIES_H_

// tiny-r1's greedy replies, as another implementation gave them.

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "base/check.h"
#include "nlohmann/json.hpp"

namespace caravan {

struct GoldenReply {
  std::vector<int32_t> prompt;
  std::vector<int32_t> reply;  // with the end of sentence
};

inline std::vector<GoldenReply> ReadGoldenReplies() {
  std::ifstream in(CARAVAN_SOURCE_DIR "/tests/data/goldens/tiny-r1-replies.jsonl");
  std::vector<GoldenReply> replies;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    replies.push_back({json["prompt_ids"].get<std::vector<int32_t>>(),
                       json["reply_ids"].get<std::vector<int32_t>>()});
  }
  CARAVAN_CHECK(!replies.empty());
  return replies;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_GOLDEN_REPLIES_H_
