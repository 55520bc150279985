#include "model/bpe.h"

#include <algorithm>
#include <map>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer_files.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;

/// A vocabulary of tiny-r1's bytes and of what `merges` make, from id 1000 on.
json SmallModel(const json& merges) {
  json model = {{"type", "BPE"}, {"vocab", json::object()}, {"merges", merges}};
  const json tiny = TinyTokenizerJson()["model"]["vocab"];
  for (const auto& [spelling, id] : tiny.items()) {
    if (id < 3 + 256) model["vocab"][spelling] = id;
  }
  int next = 1000;
  for (const json& merge : merges) {
    std::string whole = merge.is_array() ? merge[0].get<std::string>() + merge[1].get<std::string>()
                                         : merge.get<std::string>();
    whole.erase(std::remove(whole.begin(), whole.end(), ' '), whole.end());
    if (!model["vocab"].contains(whole)) model["vocab"][whole] = next++;
  }
  return model;
}

std::vector<int32_t> Encode(const Bpe& bpe, absl::string_view piece) {
  std::vector<int32_t> ids;
  bpe.Encode(piece, ids);
  return ids;
}

TEST(BpeTest, ReadsMergesInBothSpellings) {
  for (const json& merges :
       {json::parse(R"(["a b", "ab c"])"), json::parse(R"([["a", "b"], ["ab", "c"]])")}) {
    const absl::StatusOr<Bpe> bpe = Bpe::Parse(SmallModel(merges), "test");
    ASSERT_TRUE(bpe.ok()) << bpe.status();
    EXPECT_THAT(Encode(*bpe, "abcab"), ElementsAre(1001, 1000));
  }
}

TEST(BpeTest, TheEarliestMergeGoesFirstThenTheLeftmost) {
  const absl::StatusOr<Bpe> bpe = Bpe::Parse(SmallModel({"b c", "a b", "a a"}), "test");
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  const int32_t a = bpe->vocab().at("a");
  EXPECT_THAT(Encode(*bpe, "abc"), ElementsAre(a, 1000));
  EXPECT_THAT(Encode(*bpe, "aaa"), ElementsAre(1002, a));
  EXPECT_THAT(Encode(*bpe, ""), ElementsAre());
}

TEST(BpeTest, IgnoreMergesTakesAPieceThatIsATokenAsAWhole) {
  json model = SmallModel({"a b"});
  model["vocab"]["xyz"] = 1500;
  absl::StatusOr<Bpe> bpe = Bpe::Parse(model, "test");
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  EXPECT_EQ(Encode(*bpe, "xyz").size(), 3u);
  model["ignore_merges"] = true;
  bpe = Bpe::Parse(model, "test");
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  EXPECT_THAT(Encode(*bpe, "xyz"), ElementsAre(1500));
  EXPECT_EQ(Encode(*bpe, "xyzx").size(), 4u);
}

TEST(BpeTest, SpellsBytesAsGpt2) {
  EXPECT_EQ(BytesOfSpelling("\u0120a\u010A\u00E9\u0143"), " a\n\xE9\xAD");
  EXPECT_EQ(BytesOfSpelling("<\uFF5CUser\uFF5C>"), "<\uFF5CUser\uFF5C>");  // no byte's spelling
  EXPECT_EQ(BytesOfSpelling("a b"), "a b");
}

/// The definition, step by step: the whole list is searched for each merge.
std::vector<int32_t> EncodeSlowly(const json& model, const std::string& word) {
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t i = 0; i < model["merges"].size(); ++i) {
    ranks[{model["merges"][i][0], model["merges"][i][1]}] = i;
  }
  std::vector<std::string> parts;
  for (const char c : word) parts.emplace_back(1, c);
  while (true) {
    size_t best = ranks.size();
    size_t at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = ranks.find({parts[i], parts[i + 1]});
      if (it != ranks.end() && it->second < best) {
        best = it->second;
        at = i;
      }
    }
    if (best == ranks.size()) break;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& part : parts) ids.push_back(model["vocab"][part].get<int32_t>());
  return ids;
}

TEST(BpeTest, AgreesWithTheDefinitionOnRandomWords) {
  const json model = TinyTokenizerJson()["model"];
  const absl::StatusOr<Bpe> bpe = Bpe::Parse(model, "test");
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  constexpr uint32_t kSeed = 20250123;
  std::mt19937 random(kSeed);
  const absl::string_view letters = "aaeeiinnoorrsstthdlcumw'-";
  for (int i = 0; i < 50; ++i) {
    std::string word;
    for (uint32_t left = random() % 40; left > 0; --left)
      word += letters[random() % letters.size()];
    EXPECT_EQ(Encode(*bpe, word), EncodeSlowly(model, word)) << word << ", seed " << kSeed;
  }
}

}  // namespace
}  // namespace caravan
