#include "base/json.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

using nlohmann::json;

// Far past any config or tensor header; keeps what walks the tree recursively safe.
constexpr int kMaxDepth = 64;

/// What is wrong and where, in place of nlohmann's "[json.exception.parse_error.101] parse error at
/// line 1, column 8: syntax error while parsing value - invalid literal; last read: ...".
std::string Describe(const json::parse_error& error, absl::string_view text) {
  const absl::string_view before = text.substr(0, error.byte > 0 ? error.byte - 1 : 0);
  const size_t line_begin = before.rfind('\n') + 1;  // npos + 1 is 0
  // Of a text of one line the origin most often is a line already.
  std::string where;
  if (absl::StrContains(text, "\n")) {
    where = absl::StrCat("line ", std::count(before.begin(), before.end(), '\n') + 1, ", ");
  }
  absl::string_view what = error.what();
  if (const size_t at = what.find("; last read: "); at != absl::string_view::npos) {
    what = what.substr(0, at);
  }
  if (const size_t at = what.find(" - "); at != absl::string_view::npos) {
    what = what.substr(at + 3);
  }
  return absl::StrCat("not valid JSON at ", where, "column ", before.size() - line_begin + 1, ": ",
                      what);
}

/// Builds the value and refuses what nlohmann's parser takes: repeated keys, deep nesting. Not its
/// parser with a callback: that searches the whole array or object around each object that ends,
/// for what the callback dropped, so a long list of objects takes the square of its length.
class Reader final : public json::json_sax_t {
 public:
  Reader(absl::string_view text, std::string& field) : text_(text), field_(field) {}

  bool null() override { return CheckDepth() && dom_.null() && Ended(); }
  bool boolean(bool value) override { return CheckDepth() && dom_.boolean(value) && Ended(); }
  bool number_integer(number_integer_t value) override {
    return CheckDepth() && dom_.number_integer(value) && Ended();
  }
  bool number_unsigned(number_unsigned_t value) override {
    return CheckDepth() && dom_.number_unsigned(value) && Ended();
  }
  bool number_float(number_float_t value, const string_t& text) override {
    return CheckDepth() && dom_.number_float(value, text) && Ended();
  }
  bool string(string_t& value) override { return CheckDepth() && dom_.string(value) && Ended(); }
  bool binary(binary_t& value) override { return dom_.binary(value); }  // JSON has none

  bool start_object(size_t size) override {
    if (!CheckDepth()) return false;
    keys_.emplace_back();
    ++depth_;
    return dom_.start_object(size);
  }
  bool key(string_t& key) override {
    if (!CheckDepth()) return false;
    if (depth_ == 1) field_ = key;
    if (!keys_.back().insert(key).second) {
      return Refuse(absl::StrCat("key \"", key, "\" is repeated"));
    }
    return dom_.key(key);
  }
  bool end_object() override {
    keys_.pop_back();
    --depth_;
    return dom_.end_object() && Ended();
  }
  bool start_array(size_t size) override {
    if (!CheckDepth()) return false;
    ++depth_;
    return dom_.start_array(size);
  }
  bool end_array() override {
    --depth_;
    return dom_.end_array() && Ended();
  }
  bool parse_error(size_t /*position*/, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& error) override {
    const auto* const syntax = dynamic_cast<const json::parse_error*>(&error);
    return Refuse(syntax != nullptr ? Describe(*syntax, text_)
                                    : std::string("not valid JSON: a number is too large"));
  }

  json& value() { return value_; }
  const std::string& refused() const { return refused_; }  // why; empty: all is well

 private:
  bool Refuse(std::string why) {
    refused_ = std::move(why);
    return false;
  }
  bool CheckDepth() {
    return depth_ <= kMaxDepth || Refuse(absl::StrCat("nested deeper than ", kMaxDepth, " levels"));
  }
  /// A value has ended well.
  bool Ended() {
    if (depth_ == 1) field_.clear();
    return true;
  }

  const absl::string_view text_;
  std::string& field_;  // of the outermost object, whose value is being read
  json value_;
  nlohmann::detail::json_sax_dom_parser<json> dom_{value_, /*allow_exceptions_=*/false};
  int depth_ = 0;                                       // objects and arrays that are open
  std::vector<absl::flat_hash_set<std::string>> keys_;  // of the objects that are open
  std::string refused_;
};

}  // namespace

absl::StatusOr<json> ParseJson(absl::string_view text, absl::string_view origin,
                               std::string* bad_field) {
  std::string no_field;
  std::string& field = bad_field != nullptr ? *bad_field : no_field;
  field.clear();
  Reader reader(text, field);
  if (!json::sax_parse(text.begin(), text.end(), &reader)) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": ", reader.refused()));
  }
  return std::move(reader.value());
}

absl::StatusOr<json> ReadJsonFile(const std::string& path, int64_t max_bytes) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path);
}

absl::StatusOr<JsonFields> JsonFields::Of(const json& object, absl::string_view origin) {
  if (!object.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ": must be a JSON object"));
  }
  return JsonFields(object, std::string(origin));
}

const json* JsonFields::Find(absl::string_view name) const {
  const auto it = object_->find(std::string(name));
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

bool JsonFields::Has(absl::string_view name) const { return Find(name) != nullptr; }

absl::Status JsonFields::Error(absl::string_view name, absl::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat(origin_, ": field \"", name, "\" ", what));
}

absl::StatusOr<int64_t> JsonFields::Int(absl::string_view name, int64_t min, int64_t max,
                                        std::optional<int64_t> fallback) const {
  const json* value = Find(name);
  if (value == nullptr) {
    if (fallback.has_value()) return *fallback;
    return Error(name, "is missing");
  }
  const bool too_large =
      value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (!value->is_number_integer() || too_large || value->get<int64_t>() < min ||
      value->get<int64_t>() > max) {
    return Error(name, absl::StrCat("must be an integer from ", min, " to ", max));
  }
  return value->get<int64_t>();
}

absl::StatusOr<double> JsonFields::Number(absl::string_view name, double min, double max,
                                          std::optional<double> fallback) const {
  const json* value = Find(name);
  if (value == nullptr) {
    if (fallback.has_value()) return *fallback;
    return Error(name, "is missing");
  }
  // Written so that NaN fails.
  if (!value->is_number() || !(value->get<double>() >= min && value->get<double>() <= max)) {
    return Error(name, absl::StrCat("must be a number from ", min, " to ", max));
  }
  return value->get<double>();
}

absl::StatusOr<bool> JsonFields::Bool(absl::string_view name, std::optional<bool> fallback) const {
  const json* value = Find(name);
  if (value == nullptr) {
    if (fallback.has_value()) return *fallback;
    return Error(name, "is missing");
  }
  if (!value->is_boolean()) return Error(name, "must be true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonFields::String(absl::string_view name,
                                               std::optional<std::string> fallback) const {
  const json* value = Find(name);
  if (value == nullptr) {
    if (fallback.has_value()) return *std::move(fallback);
    return Error(name, "is missing");
  }
  if (!value->is_string()) return Error(name, "must be a string");
  return value->get<std::string>();
}

absl::StatusOr<JsonFields> JsonFields::Object(absl::string_view name) const {
  const json* value = Find(name);
  if (value == nullptr) return Error(name, "is missing");
  if (!value->is_object()) return Error(name, "must be an object");
  return JsonFields(*value, absl::StrCat(origin_, ": ", name));
}

absl::StatusOr<const json*> JsonFields::Array(absl::string_view name) const {
  const json* value = Find(name);
  if (value == nullptr) return Error(name, "is missing");
  if (!value->is_array()) return Error(name, "must be an array");
  return value;
}

}  // namespace caravan
