/* M7: layers 1..NL made one on the other in one mount of a working device W; a middle layer is a copy of W, taken while
 * W is suspended; the last one is W itself.  Two processes make the same chain, a third one removes layers.
 * Checks: a recorded layer is whole, with its side files, on its parent, and never changes; nobody fills a layer that
 * exists or that somebody else fills; nothing is left over, suspended or locked.
 * M_x takes a rule away.  Ids, windows and tombstones are m1's, the order of locks is m6's.                          */
#ifndef NL
#define NL 2                    /* layers; layer 0 exists from the start */
#endif
#ifndef NI
#define NI 6                    /* ids; id 0 is layer 0's */
#endif
#ifndef OPS
#define OPS 3                   /* runs of all processes together */
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef CUTS
#define CUTS 1
#endif
#ifndef REMOVALS
#define REMOVALS 1
#endif
#define NP 2
#define GHOST 9                 /* the file system of a dead process, kept by its freeze */
#define GARBAGE 99
bit rec[NL+1]; byte nid[NL+1];                          /* the record store */
bit kx[NI], du[NI], susp[NI]; byte c[NI], opn[NI];      /* kernel; c: layers complete, times two, less one while one is written */
byte blob[NI];                                          /* side files of which layer */
byte idl[NI], ch[NL+1], cur = 1; byte filling[NL+1];
bit killed[NP+1]; byte ops, kills, cuts, fin, removals;

#define NAMED(j) (j == 0 || (rec[1] && nid[1] == j) || (rec[NL] && nid[NL] == j) || (NL > 2 && rec[2] && nid[2] == j))
#define LEFT(j) ((kx[j] || blob[j]) && !NAMED(j) && idl[j] == 0)
#define DEL(j) kx[j] = 0; c[j] = 0; du[j] = 0; blob[j] = 0
#define UNL(j) if :: idl[j] == me -> idl[j] = 0 :: else fi
#define UNC(l) if :: ch[l] == me -> ch[l] = 0 :: else fi

inline recover() {              /* locks are tried, and the store is read again with the lock in hand: see m1 */
  j = 1;
  do
  :: j < NI ->
#ifndef M_NORESUME
     if
     :: atomic { susp[j] && idl[j] == 0 -> susp[j] = 0; if :: opn[j] == GHOST -> opn[j] = 0 :: else fi }
     :: !(susp[j] && idl[j] == 0)
     fi;
#endif
     if
     :: atomic { LEFT(j) -> idl[j] = me };
        if
        :: atomic { opn[j] == 0 -> DEL(j) }
        :: opn[j] != 0                                      /* EBUSY: stays */
        fi;
        atomic { UNL(j) }
     :: !LEFT(j)
     fi; j++
  :: else -> break
  od; j = 0
}

proctype P(byte me) {
  byte k, w, n, p, j; bit more;
again:
  { recover();
    do
    :: atomic { ops < OPS -> ops++; k = 1; do :: k <= NL && rec[k] -> k++ :: else -> break od; if :: k > NL -> goto next :: else fi };
       atomic { ch[k] == 0 -> ch[k] = me };                 /* the first chain lock is waited for */
       atomic { if :: rec[k] || !rec[k-1] || cur >= NI -> goto next :: else -> p = nid[k-1]; w = cur; cur++; idl[w] = me fi };
       atomic { if :: kx[p] -> kx[w] = 1; c[w] = 2 * (k-1); du[w] = 1 :: else -> goto undo fi };
       opn[w] = me;
fill:  atomic { assert(!rec[k] && !filling[k]); filling[k] = me; c[w] = 2 * k - 1; du[w] = 0; blob[w] = k };
       c[w] = 2 * k;
       /* does it go on?  The next chain lock is tried. */
       more = 0;
       if
       :: k < NL ->
#ifdef M_NOCHAIN_NEXT
          more = !rec[k+1]
#else
          if
          :: atomic { ch[k+1] == 0 -> ch[k+1] = me };
             if :: atomic { !rec[k+1] -> more = 1 } :: atomic { rec[k+1] -> UNC(k+1) } fi
          :: ch[k+1] != 0
          fi
#endif
       :: else
       fi;
       if
       :: more ->
#ifdef M_NOCOPY                 /* W itself is recorded, and the next layer written to it */
          n = w; du[w] = 1;
#else
          atomic { if :: cur < NI -> n = cur; cur++;
#ifndef M_NOIDLOCK_COPY
                         idl[n] = me
#endif
                      :: else -> goto undo fi };
#ifndef M_NOFREEZE
          atomic { susp[w] = 1; du[w] = 1 };                /* what is dirty is written before the suspension is there */
#endif
          atomic { kx[n] = 1; c[n] = c[w]; du[n] = du[w] };
          atomic { susp[w] = 0; du[w] = 1 };
#ifndef M_BLOB_LATE
          atomic { blob[n] = blob[w]; blob[w] = 0 };
#endif
#endif
#ifdef M_CHAIN_EARLY
          atomic { UNC(k) };
#endif
          atomic {              /* the record, with everything checked again */
            if
#ifdef M_NORECHECK
            :: 1 ->
#else
            :: rec[k-1] && nid[k-1] == p && !rec[k] ->
#endif
               rec[k] = 1; nid[k] = n; p = n
            :: else -> DEL(n); UNL(n); goto undo
            fi };
#ifdef M_BLOB_LATE
          atomic { blob[n] = blob[w]; blob[w] = 0 };
#endif
          atomic { if :: n != w -> UNL(n) :: else fi; filling[k] = 0; UNC(k); k++ };
          goto fill
       :: else ->
          atomic { du[w] = 1 }; opn[w] = 0;
          atomic {
            if
#ifdef M_NORECHECK
            :: 1 ->
#else
            :: rec[k-1] && nid[k-1] == p && !rec[k] ->
#endif
               rec[k] = 1; nid[k] = w; goto next
            :: else -> goto undo
            fi }
       fi;
undo:  atomic { opn[w] = 0; susp[w] = 0; if :: !NAMED(w) -> DEL(w) :: else fi };
next:  atomic { j = 0; do :: j < NI -> UNL(j); j++ :: else -> break od;
                j = 1; do :: j <= NL -> UNC(j); if :: filling[j] == me -> filling[j] = 0 :: else fi; j++ :: else -> break od;
                j = 0; k = 0; w = 0; n = 0; p = 0; more = 0 }
    :: break
    od; fin++; goto end
  } unless { atomic { killed[me] -> killed[me] = 0; j = 0; k = 0; w = 0; n = 0; p = 0; more = 0 } };
  goto again;
end: skip
}

inline die(q) { killed[q] = 1; j = 0;
  do :: j < NI -> if :: idl[j] == q -> idl[j] = 0 :: else fi;
                  if :: opn[j] == q -> opn[j] = (susp[j] -> GHOST : 0) :: else fi; j++ :: else -> break od;
  j = 1;
  do :: j <= NL -> if :: ch[j] == q -> ch[j] = 0 :: else fi; if :: filling[j] == q -> filling[j] = 0 :: else fi; j++ :: else -> break od; j = 0 }
proctype Env() { byte j, q;
  do
  :: atomic { kills < KILLS && fin == 0 -> kills++; select(q : 1 .. NP); die(q); q = 0 }
  :: atomic { cuts < CUTS && fin == 0 -> cuts++; q = 1; do :: q <= NP -> die(q); q++ :: else -> break od; q = 0;
       j = 1; do :: j < NI -> susp[j] = 0; opn[j] = 0; if :: kx[j] && !du[j] -> c[j] = GARBAGE :: else fi; j++ :: else -> break od; j = 0 }
  :: atomic { removals < REMOVALS && fin == 0 -> removals++; j = 1;       /* a layer without children, whose lock is free */
       do :: j < NL && rec[j+1] -> j++ :: else -> break od;
       if :: rec[j] && idl[nid[j]] == 0 -> rec[j] = 0; q = nid[j]; DEL(q); nid[j] = 0 :: else fi; j = 0; q = 0 }
  :: atomic { fin == NP -> break }
  od }
proctype Fin() { byte j; byte me = NP + 1;
  fin == NP;
  recover();
  atomic { j = 1; do :: j < NI -> assert(!kx[j] || NAMED(j)); assert(!blob[j] || NAMED(j)); assert(!susp[j] && !opn[j] && !idl[j]); j++ :: else -> break od;
           j = 1; do :: j <= NL -> assert(!ch[j] && !filling[j]); j++ :: else -> break od } }
#define BAD(l) (rec[l] && (!kx[nid[l]] || c[nid[l]] != 2 * l || blob[nid[l]] != l || !rec[l-1]))
proctype Mon() {
endm: atomic { (BAD(1) || BAD(NL) || (NL > 2 && BAD(2))) -> assert(0) } }
init { atomic { rec[0] = 1; kx[0] = 1; du[0] = 1; run P(1); run P(2); run Env(); run Fin(); run Mon() } }
