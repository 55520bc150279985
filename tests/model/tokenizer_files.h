#ifndef CARAVAN_TESTS_MODEL_TOKENIZER_FILES_H_
#define CARAVAN_TESTS_MODEL_TOKENIZER_FILES_H_

// The tokenizers that the tests of model/ read, and broken copies of them.

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"

namespace caravan {

inline constexpr char kTinyDirectory[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";
inline constexpr char kTinyTokenizer[] = CARAVAN_SOURCE_DIR "/models/tiny-r1/tokenizer.json";
inline constexpr char kGoldens[] = CARAVAN_SOURCE_DIR "/tests/data/goldens/";

/// Null after a failure that says why.
inline std::unique_ptr<Tokenizer> LoadTokenizer(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(path);
  if (tokenizer.ok()) return *std::move(tokenizer);
  ADD_FAILURE() << tokenizer.status();
  return nullptr;
}

inline std::unique_ptr<Tokenizer> LoadTinyTokenizer() { return LoadTokenizer(kTinyTokenizer); }

inline std::unique_ptr<Tokenizer> LoadDeepSeekTokenizer() {
  const std::string path = CARAVAN_TEST_DATA_DIR "/deepseek-v3/tokenizer.json";
  if (!FileExists(path)) {
    ADD_FAILURE() << path << " is not there: run scripts/test.sh, which installs it";
    return nullptr;
  }
  return LoadTokenizer(path);
}

/// One value a line of the file `name` among the goldens.
inline std::vector<nlohmann::json> ReadGoldenLines(const std::string& name) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(kGoldens + name);
  for (std::string line; std::getline(file, line);) {
    absl::StatusOr<nlohmann::json> value = ParseJson(line, name);
    if (value.ok()) {
      lines.push_back(*std::move(value));
    } else {
      ADD_FAILURE() << value.status();
    }
  }
  EXPECT_FALSE(lines.empty()) << name;
  return lines;
}

/// tiny-r1's tokenizer.json, to be changed.
inline nlohmann::json TinyTokenizerJson() {
  absl::StatusOr<nlohmann::json> value = ReadJsonFile(kTinyTokenizer);
  if (value.ok()) return *std::move(value);
  ADD_FAILURE() << value.status();
  return nlohmann::json::object();
}

/// A temporary file that holds `text`; its name is that of the running test and `suffix`.
inline std::string WriteTemporaryFile(const std::string& suffix, const std::string& text) {
  const std::string path = ::testing::TempDir() +
                           ::testing::UnitTest::GetInstance()->current_test_info()->name() + suffix;
  std::ofstream file(path, std::ios::binary);
  file << text;
  EXPECT_TRUE(file.good()) << path;
  return path;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_MODEL_TOKENIZER_FILES_H_
