#include "model/pre_tokenizer.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

// What ByteLevel splits by where use_regex is on: GPT-2's pattern.
constexpr absl::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::vector<ByteRange> FindLiteral(absl::string_view literal, absl::string_view text) {
  std::vector<ByteRange> matches;
  for (size_t at = text.find(literal); at != absl::string_view::npos;
       at = text.find(literal, at + literal.size())) {
    matches.push_back({at, at + literal.size()});
  }
  return matches;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const json& value, absl::string_view origin) {
  PreTokenizer pre_tokenizer;
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, origin));
  CARAVAN_ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (type == "Sequence") {
    CARAVAN_ASSIGN_OR_RETURN(const json* const steps, fields.Array("pretokenizers"));
    for (size_t i = 0; i < steps->size(); ++i) {
      CARAVAN_RETURN_IF_ERROR(
          pre_tokenizer.AddStep((*steps)[i], absl::StrCat(origin, ": pretokenizers[", i, "]")));
    }
  } else {
    CARAVAN_RETURN_IF_ERROR(pre_tokenizer.AddStep(value, origin));
  }
  if (!pre_tokenizer.has_byte_level_) {
    return fields.Error("type", "has no ByteLevel; Caravan runs only byte-level tokenizers");
  }
  return pre_tokenizer;
}

absl::Status PreTokenizer::AddStep(const json& value, absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, origin));
  CARAVAN_ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (has_byte_level_) return fields.Error("type", "comes after ByteLevel, which must be last");
  if (type == "Split") {
    CARAVAN_ASSIGN_OR_RETURN(Splitter splitter, ParseSplitter(value, origin));
    splitters_.push_back(std::move(splitter));
    return absl::OkStatus();
  }
  if (type != "ByteLevel") {
    return fields.Error("type", absl::StrCat("is \"", type, "\", which Caravan does not run"));
  }
  // trim_offsets concerns only offsets, which nobody asks for here.
  CARAVAN_ASSIGN_OR_RETURN(const bool add_prefix_space, fields.Bool("add_prefix_space", true));
  if (add_prefix_space) {
    return fields.Error("add_prefix_space", "is true, which Caravan does not run");
  }
  CARAVAN_ASSIGN_OR_RETURN(const bool use_regex, fields.Bool("use_regex", true));
  if (use_regex) {
    CARAVAN_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(kByteLevelPattern));
    splitters_.push_back({std::move(regex), Behavior::kIsolated, false});
  }
  has_byte_level_ = true;
  return absl::OkStatus();
}

absl::StatusOr<PreTokenizer::Splitter> PreTokenizer::ParseSplitter(const json& value,
                                                                   absl::string_view origin) {
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields pattern, fields.Object("pattern"));
  Splitter splitter;
  if (pattern.Has("String")) {
    CARAVAN_ASSIGN_OR_RETURN(std::string literal, pattern.String("String"));
    if (literal.empty()) return pattern.Error("String", "must not be empty");
    splitter.pattern = std::move(literal);
  } else {
    CARAVAN_ASSIGN_OR_RETURN(const std::string text, pattern.String("Regex"));
    absl::StatusOr<Regex> regex = Regex::Compile(text);
    if (!regex.ok()) {
      return pattern.Error("Regex", absl::StrCat("cannot be used: ", regex.status().message()));
    }
    splitter.pattern = *std::move(regex);
  }
  CARAVAN_ASSIGN_OR_RETURN(splitter.invert, fields.Bool("invert", false));
  CARAVAN_ASSIGN_OR_RETURN(const std::string behavior, fields.String("behavior"));
  constexpr std::pair<absl::string_view, Behavior> kBehaviors[] = {
      {"Removed", Behavior::kRemoved},
      {"Isolated", Behavior::kIsolated},
      {"Contiguous", Behavior::kContiguous},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext},
  };
  for (const auto& [name, value_of_name] : kBehaviors) {
    if (behavior == name) {
      splitter.behavior = value_of_name;
      return splitter;
    }
  }
  return fields.Error("behavior",
                      absl::StrCat("is \"", behavior, "\", which Caravan does not run"));
}

absl::Status PreTokenizer::Apply(const Splitter& splitter, absl::string_view text,
                                 std::vector<absl::string_view>& pieces) {
  std::vector<ByteRange> matches;
  if (const Regex* regex = std::get_if<Regex>(&splitter.pattern)) {
    CARAVAN_ASSIGN_OR_RETURN(matches, regex->FindAll(text));
  } else {
    matches = FindLiteral(std::get<std::string>(splitter.pattern), text);
  }
  // Walks the runs that cover the text, matches and what lies between them; `open` is the piece
  // that the next run may still join.
  ByteRange open;
  bool open_is_match = false;
  const auto close = [&] {
    if (open.begin < open.end) pieces.push_back(text.substr(open.begin, open.end - open.begin));
    open = {};
  };
  const auto visit = [&](ByteRange run, bool is_match) {
    if (run.begin == run.end) return;
    is_match = is_match != splitter.invert;
    bool joins = false;
    switch (splitter.behavior) {
      case Behavior::kRemoved:
      case Behavior::kIsolated:
        break;
      case Behavior::kContiguous:
        joins = is_match == open_is_match;
        break;
      case Behavior::kMergedWithPrevious:
        joins = is_match && !open_is_match;
        break;
      case Behavior::kMergedWithNext:
        joins = !is_match && open_is_match;
        break;
    }
    if (joins && open.begin < open.end) {
      open.end = run.end;
    } else {
      close();
      if (!(is_match && splitter.behavior == Behavior::kRemoved)) open = run;
    }
    open_is_match = is_match;
  };
  size_t at = 0;
  for (const ByteRange match : matches) {
    visit({at, match.begin}, false);
    visit(match, true);
    at = match.end;
  }
  visit({at, text.size()}, false);
  close();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<absl::string_view>> PreTokenizer::Split(absl::string_view text) const {
  std::vector<absl::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Splitter& splitter : splitters_) {
    std::vector<absl::string_view> finer;
    finer.reserve(pieces.size());
    for (const absl::string_view piece : pieces) {
      CARAVAN_RETURN_IF_ERROR(Apply(splitter, piece, finer));
    }
    pieces = std::move(finer);
  }
  return pieces;
}

}  // namespace caravan
