#ifndef CARAVAN_BASE_FREE_WITH_H_
#define CARAVAN_BASE_FREE_WITH_H_

namespace caravan {

/// The deleter of a std::unique_ptr for what a C library gives: calls kFree.
template <auto kFree>
struct FreeWith {
  template <typename T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};

}  // namespace caravan

#endif  // CARAVAN_BASE_FREE_WITH_H_
