#include "cluster/purchases.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/thread_pool.h"
#include "cluster/known_boxes.h"

namespace caravan {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

constexpr unsigned kMostThreads = 64;

// The guide: 3.2 dollars an hour. A dollar was 7.1 yuan when it was written (the central bank's
// rate of September 2025, 7.10 to 7.12).
constexpr double kA100YuanAnHour = 3.2 * 7.1;

template <class P>
P Known(absl::string_view key) {
  absl::StatusOr<P> part = FindPart<P>(key);
  CARAVAN_CHECK(part.ok());
  return *std::move(part);
}

class Shop {
 public:
  explicit Shop(absl::Span<const BoxCount> boxes) : boxes_(boxes.begin(), boxes.end()) {}

  std::vector<Purchase> Offers() {
    for (size_t kind = 0; kind < boxes_.size(); ++kind) {
      AddBox(kind);
      AddMemory(kind);
      AddDrives(kind);
      AddCards(kind);
    }
    AddRented();
    return std::move(offers_);
  }

 private:
  void AddBox(size_t kind) {
    Purchase& offer = offers_.emplace_back();
    offer.what = absl::StrCat("another box ", boxes_[kind].box.name);
    offer.price_yuan = boxes_[kind].box.price_yuan();
    offer.boxes = boxes_;
    ++offer.boxes[kind].count;
  }

  /// `change`d boxes of a kind, each for `price`.
  template <class Change>
  void AddToEach(size_t kind, const std::string& what, double price, const Change& change) {
    Purchase& offer = offers_.emplace_back();
    const BoxCount& now = boxes_[kind];
    offer.what = now.count == 1
                     ? absl::StrCat(what, " in box ", now.box.name)
                     : absl::StrCat(what, " in each of ", now.count, " boxes ", now.box.name);
    offer.price_yuan = price * now.count;
    offer.boxes = boxes_;
    change(offer.boxes[kind].box);
  }

  void AddMemory(size_t kind) {
    const auto memory = Known<Box::Memory>("ddr4-32");
    AddToEach(kind, "32 GiB more memory", memory.price_yuan, [](Box& box) {
      box.memory.total_bytes += 32 * kGiB;
      box.memory.bytes += 32 * kGiB;
    });
  }

  void AddDrives(size_t kind) {
    const Box& box = boxes_[kind].box;
    const Box::Disk drive = InSlot(Known<Box::Disk>("nvme4"), box.cpu);
    if (drive.read_bytes > 1.05 * box.disk.read_bytes / box.disk.drives) {
      AddToEach(kind, "an NVMe of PCIe 4 in the drive's place", drive.price_yuan,
                [&](Box& changed) { changed.disk = drive; });
    }
    AddToEach(kind, "one more drive (NVMe) with the same files", drive.price_yuan,
              [&](Box& changed) {
                ++changed.disk.drives;
                changed.disk.bytes = std::min(changed.disk.bytes, drive.bytes);
                changed.disk.read_bytes += drive.read_bytes;
              });
  }

  void AddCards(size_t kind) {
    const Box& box = boxes_[kind].box;
    if (box.card.count > 0) {
      AddToEach(kind, absl::StrCat("one more ", box.card.name), box.card.price_yuan,
                [](Box& changed) { ++changed.card.count; });
    }
    for (const char* key : {"1660s", "3060", "4090"}) {
      const Box::Card card = InSlot(Known<Box::Card>(key), box.cpu);
      if (card.total_bytes <= box.card.count * box.card.total_bytes) continue;
      AddToEach(kind,
                box.card.count == 0 ? absl::StrCat("a card, ", card.name)
                                    : absl::StrCat(card.name, " in the card's place"),
                card.price_yuan, [&](Box& changed) { changed.card = card; });
    }
  }

  void AddRented() {
    absl::StatusOr<Box> box = FindBox("a100");
    CARAVAN_CHECK(box.ok());
    box->network = boxes_.front().box.network;
    Purchase& offer = offers_.emplace_back();
    offer.what = "a rented box with an A100 of 80 GB, an hour of it";
    offer.price_yuan = kA100YuanAnHour;
    offer.by_the_hour = true;
    offer.boxes = boxes_;
    offer.boxes.push_back({*std::move(box), 1});
  }

  std::vector<BoxCount> boxes_;
  std::vector<Purchase> offers_;
};

}  // namespace

std::vector<Purchase> PossiblePurchases(absl::Span<const BoxCount> boxes) {
  CARAVAN_CHECK(!boxes.empty());
  std::vector<Purchase> offers = Shop(boxes).Offers();
  // A box that had no network was alone; whatever joins it comes by the slowest.
  for (Purchase& offer : offers) {
    for (BoxCount& kind : offer.boxes) {
      if (kind.box.network.bytes == 0) kind.box.network = Known<Box::Network>("1gbe");
    }
  }
  return offers;
}

std::vector<PurchaseGain> RankPurchases(const ModelConfig& config, const ModelCost& cost,
                                        absl::Span<const BoxCount> boxes, const ForecastLoad& load,
                                        double now) {
  // Each is a plan of its own: on all cores.
  std::vector<Purchase> purchases = PossiblePurchases(boxes);
  std::vector<double> rates(purchases.size(), -1);
  ThreadPool pool(
      static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, kMostThreads)));
  pool.ParallelFor(std::ssize(purchases), 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      const absl::StatusOr<Forecast> forecast =
          ForecastBoxes(config, cost, purchases[i].boxes, load);
      if (forecast.ok()) rates[i] = forecast->TokensPerSecond(load.aim);
    }
  });
  std::vector<PurchaseGain> gains;
  for (size_t i = 0; i < purchases.size(); ++i) {
    if (rates[i] < 0) continue;
    PurchaseGain& gain = gains.emplace_back();
    gain.purchase = std::move(purchases[i]);
    gain.tokens_per_second = rates[i];
    gain.gain = gain.tokens_per_second - now;
  }
  std::stable_sort(gains.begin(), gains.end(), [](const PurchaseGain& a, const PurchaseGain& b) {
    const auto key = [](const PurchaseGain& gain) {
      return std::tuple(gain.purchase.by_the_hour, gain.purchase.price_yuan == 0,
                        -gain.gain_per_1000_yuan());
    };
    return key(a) < key(b);
  });
  return gains;
}

}  // namespace caravan
